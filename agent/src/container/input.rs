//! What the agent tells a container stage, as JSON in a file of its own.

use oci_spec::runtime::{LinuxPersonality, LinuxSeccomp, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};

/// Who a container is, beyond its spec.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// What its caller calls it.
    pub(crate) name: String,
    /// The bundle's path on the host.
    pub(crate) bundle: String,
    /// Mounts of the spec, by their place in its list, that the stage is handed ready.
    pub(crate) mounts: Vec<usize>,
}

impl Identity {
    /// The spec follows as text, as both sides read it anyway.
    pub(crate) fn with_spec(&self, spec_json: &[u8]) -> Result<Vec<u8>> {
        let mut text = encode(self)?;
        text.extend_from_slice(spec_json);
        Ok(text)
    }
}

/// What the container's own spec asks for its further processes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Inherited {
    pub(crate) seccomp: Option<LinuxSeccomp>,
    pub(crate) personality: Option<LinuxPersonality>,
    pub(crate) has_time_namespace: bool,
    pub(crate) has_user_namespace: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Joining {
    pub(crate) process: Process,
    pub(crate) inherited: Inherited,
}

impl Joining {
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        encode(self)
    }

    pub(crate) fn decode(text: &[u8]) -> Result<Self> {
        serde_json::from_slice(text).map_err(|error| broken(&error))
    }
}

pub(crate) fn decode_creation(text: &[u8]) -> Result<(Identity, Spec)> {
    let mut values = serde_json::Deserializer::from_slice(text);
    let identity = Identity::deserialize(&mut values).map_err(|error| broken(&error))?;
    let spec = Spec::deserialize(&mut values).map_err(|error| broken(&error))?;
    Ok((identity, spec))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Failure::internal(format!("encode the stage's input: {error}")))
}

fn broken(error: &serde_json::Error) -> Failure {
    Failure::invalid(format!("container spec: {error}"))
}
