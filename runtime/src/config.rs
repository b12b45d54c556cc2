//! The runtime's configuration file, `/etc/lazaret/config.toml`.
//!
//! Every key is optional and unknown keys are refused. Paths default to where
//! `make install` puts things, under the prefix of the running executable.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Names another file than [`CONFIG_PATH`], for tests.
pub const CONFIG_ENV: &str = "LAZARET_CONFIG";

/// Where the configuration is looked for.
pub const CONFIG_PATH: &str = "/etc/lazaret/config.toml";

const MIB: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration {} is not valid", path.display())]
    Parse {
        path: PathBuf,
        source: toml::de::Error,
    },
    #[error("the configuration {} sets {key} to {value}: {reason}", path.display())]
    Value {
        path: PathBuf,
        key: &'static str,
        value: String,
        reason: &'static str,
    },
}

/// What an administrator can change for every sandbox of this host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The guest kernel, an uncompressed ELF image.
    pub kernel: PathBuf,
    /// The guest's initramfs with the agent as `/init`.
    pub initramfs: PathBuf,
    /// The virtual machine monitor.
    pub vmm: PathBuf,
    /// The sandbox process.
    pub shim: PathBuf,
    /// Images and containers of the `lazaret` command.
    pub data_dir: PathBuf,
    /// Sandboxes that run: sockets, logs, state. Does not outlive the host.
    pub run_dir: PathBuf,
    /// Put each microVM into a cgroup (v2) of the host with its memory, CPU and
    /// process limits. Off, only the limits inside the guest hold.
    pub host_cgroup: bool,
    /// How long a microVM may take from its start to an agent that answers.
    pub boot_timeout_s: u32,
    /// Memory of a microVM where the container sets no limit.
    pub memory_mib: u32,
    /// Virtual CPUs of a microVM where the container sets no limit.
    pub vcpus: u8,
    /// Bounds on what an archive may unpack to.
    pub image: ImageLimits,
}

/// Bounds that keep an archive from filling the host's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageLimits {
    /// Uncompressed size of one layer, and of an archive that holds layers.
    pub max_unpacked_mib: u64,
    /// Files, directories and links in one layer.
    pub max_entries: u64,
    /// Space on the disk that unpacking leaves free.
    pub reserve_mib: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self::with_prefix(&installed_prefix(std::env::current_exe().ok().as_deref()))
    }
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            max_unpacked_mib: 64 * 1024,
            max_entries: 2_000_000,
            reserve_mib: 256,
        }
    }
}

impl ImageLimits {
    pub fn max_unpacked_bytes(&self) -> u64 {
        self.max_unpacked_mib.saturating_mul(MIB)
    }

    pub fn reserve_bytes(&self) -> u64 {
        self.reserve_mib.saturating_mul(MIB)
    }
}

impl Config {
    /// Reads the host's configuration; a missing file means the defaults.
    pub fn load() -> Result<Self, ConfigError> {
        let path = std::env::var_os(CONFIG_ENV);
        Self::load_from(path.as_deref().map_or(Path::new(CONFIG_PATH), Path::new))
    }

    pub fn load_from(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })?;
        config.validate(path)?;
        Ok(config)
    }

    fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        let refuse = |key, value: String, reason| {
            Err(ConfigError::Value {
                path: path.to_owned(),
                key,
                value,
                reason,
            })
        };
        for (key, value) in [
            ("kernel", &self.kernel),
            ("initramfs", &self.initramfs),
            ("vmm", &self.vmm),
            ("shim", &self.shim),
            ("data_dir", &self.data_dir),
            ("run_dir", &self.run_dir),
        ] {
            if !value.is_absolute() {
                return refuse(
                    key,
                    value.display().to_string(),
                    "the path must be absolute",
                );
            }
        }
        if self.memory_mib < 64 {
            return refuse(
                "memory_mib",
                self.memory_mib.to_string(),
                "at least 64 are needed",
            );
        }
        if !(1..=32).contains(&self.vcpus) {
            return refuse("vcpus", self.vcpus.to_string(), "from 1 to 32 are possible");
        }
        Ok(())
    }

    fn with_prefix(prefix: &Path) -> Self {
        Self {
            kernel: prefix.join("share/lazaret/vmlinux"),
            initramfs: prefix.join("share/lazaret/initramfs"),
            vmm: prefix.join("libexec/lazaret/lazaret-vmm"),
            shim: prefix.join("bin/containerd-shim-lazaret-v2"),
            data_dir: PathBuf::from("/var/lib/lazaret"),
            run_dir: PathBuf::from("/run/lazaret"),
            host_cgroup: true,
            boot_timeout_s: 60,
            memory_mib: 512,
            vcpus: 1,
            image: ImageLimits::default(),
        }
    }
}

/// `/usr/local` for `/usr/local/bin/lazaret`; `/usr` for anything that does
/// not lie in a `bin` directory, such as a build tree.
fn installed_prefix(executable: Option<&Path>) -> PathBuf {
    executable
        .and_then(Path::parent)
        .filter(|directory| directory.ends_with("bin"))
        .and_then(Path::parent)
        .map_or_else(|| PathBuf::from("/usr"), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/lazaret/config.toml"))
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn a_missing_file_means_the_defaults() {
        let config = Config::load_from(Path::new("/nonexistent/lazaret.toml")).unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn documented_sample_is_the_default() {
        let sample = parse(include_str!("../config.toml")).unwrap();
        assert_eq!(sample, Config::with_prefix(Path::new("/usr")));
    }

    #[test]
    fn keys_override_one_by_one() {
        let config = parse("memory_mib = 256\n[image]\nmax_entries = 7\n").unwrap();
        assert_eq!(config.memory_mib, 256);
        assert_eq!(config.image.max_entries, 7);
        assert_eq!(
            config.image.max_unpacked_mib,
            ImageLimits::default().max_unpacked_mib
        );
        assert_eq!(config.vcpus, 1);
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(matches!(
            parse("memory = 1"),
            Err(ConfigError::Parse { .. })
        ));
        assert!(matches!(
            parse("[image]\nmax = 1"),
            Err(ConfigError::Parse { .. })
        ));
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        for (text, expected) in [
            ("memory_mib = 63", "memory_mib"),
            ("vcpus = 0", "vcpus"),
            ("vcpus = 33", "vcpus"),
            ("kernel = 'vmlinux'", "kernel"),
        ] {
            match parse(text) {
                Err(ConfigError::Value { key, .. }) => assert_eq!(key, expected),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_prefix_follows_the_executable() {
        for (executable, prefix) in [
            (Some("/usr/local/bin/lazaret"), "/usr/local"),
            (Some("/usr/bin/lazaret"), "/usr"),
            (Some("/src/target/debug/lazaret"), "/usr"),
            (None, "/usr"),
        ] {
            assert_eq!(
                installed_prefix(executable.map(Path::new)),
                Path::new(prefix)
            );
        }
    }
}
