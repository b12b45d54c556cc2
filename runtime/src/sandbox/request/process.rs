//! Processes of a container, its own and those added to it: started, attended to
//! until they have ended and their output is delivered, signalled.

use std::sync::Arc;
use std::time::SystemTime;

use ttrpc::Code;

use super::{ExecRequest, Target};
use crate::agent::{AgentClient, AgentError};
use crate::container::Exec;
use crate::process::{Exit, Process, Stage};
use crate::sandbox::id::{ContainerId, ExecId};
use crate::sandbox::terminal::set_size;
use crate::sandbox::{CLOSING_GRACE, Chain, Close, Event, Fault, Sandbox, SandboxError};
use crate::stdio::{DRAIN_GRACE, HostEnds};

const SIGKILL: u32 = 9;

/// How long a process may live on after SIGKILL, in units of [`DRAIN_GRACE`].
const KILL_GRACES: u32 = 15;

/// Exit status of a process whose executable could not be started.
const CANNOT_EXECUTE: u32 = 126;
const NOT_FOUND: u32 = 127;
const OWN_ERROR: u32 = 125;

impl Sandbox {
    /// Adds a process to a container; it is made when it is started.
    pub fn exec(&self, request: ExecRequest) -> Result<(), SandboxError> {
        let container = self.container(&request.container)?;
        container.init.must_be_alive()?;
        let exec = Arc::new(Exec {
            process: Arc::new(Process::new(request.stdio)),
            spec_json: request.spec_json,
        });
        match container.execs().entry(request.exec.clone()) {
            std::collections::btree_map::Entry::Occupied(_) => {
                return Err(SandboxError::ExecExists {
                    container: request.container,
                    exec: request.exec,
                });
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(exec);
            }
        }
        self.publish(Event::ExecAdded {
            container: request.container,
            exec: request.exec,
        });
        Ok(())
    }

    /// Lets the container's process, or one added to it, run.
    pub async fn start(
        self: &Arc<Self>,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<u32, SandboxError> {
        let started = self.try_start(id, exec).await;
        started.map_err(|err| match err {
            SandboxError::Ended(_)
            | SandboxError::Agent(AgentError::Lost)
            | SandboxError::Network(_)
                if exec.is_none() =>
            {
                self.ended_first(id).unwrap_or(err)
            }
            err => err,
        })
    }

    /// Why a container that has ended by itself does not start: its microVM goes with it,
    /// and is not the reason.
    fn ended_first(&self, id: &ContainerId) -> Option<SandboxError> {
        let container = self.container(id).ok()?;
        container.init.exit().filter(|exit| exit.reason.is_none())?;
        let stopped = container.init.claim_start(&Stage::Created).err()?;
        Some(stopped.into())
    }

    async fn try_start(
        self: &Arc<Self>,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<u32, SandboxError> {
        let agent = self.agent().await?;
        let target = self.target(id, exec)?;
        if let Some(exec) = exec {
            target.process.claim_start(&Stage::Creating)?;
            self.make_process(&agent, &target, exec).await?;
        } else {
            if target.container.is_paused() {
                return Err(SandboxError::Paused(id.clone()));
            }
            target.process.claim_start(&Stage::Created)?;
            // Engines may have set it up after create.
            if let Err(err) = self.update_network(&agent).await {
                target.process.unclaim_start();
                return Err(err);
            }
        }
        target.process.starting();
        let started = agent.start_process(target.name()).await;
        if matches!(started, Err(AgentError::Lost)) {
            // Why is being found out, and is how the process has ended.
            target.process.wait().await;
        }
        if let Err(err) = started {
            if exec.is_none() && is_no_start(&err) {
                // It waits as before; or it has ended, and who attends to it tells how.
                if target.process.unclaim_start() {
                    self.changed();
                }
                return Err(err.into());
            }
            target.process.stopped(Exit {
                status: status_of_failed_start(&err),
                at: SystemTime::now(),
                reason: Some(err.to_string()),
                oom_killed: false,
            });
            self.after_the_end(&target);
            return Err(err.into());
        }
        target.process.started();
        self.changed();
        let container = id.clone();
        self.publish(match exec {
            None => Event::Start { container },
            Some(exec) => Event::ExecStarted {
                container,
                exec: exec.clone(),
            },
        });
        Ok(self.pid().unwrap_or_default())
    }

    async fn make_process(
        self: &Arc<Self>,
        agent: &AgentClient,
        target: &Target,
        exec: &ExecId,
    ) -> Result<(), SandboxError> {
        let spec_json = {
            let execs = target.container.execs();
            execs.get(exec).map(|exec| exec.spec_json.clone())
        };
        let made = async {
            let stdio = &target.process.stdio;
            let terminal = if stdio.terminal {
                self.inherited.terminal(&stdio.stdin)?
            } else {
                None
            };
            let ends = HostEnds::open(stdio, None, &self.inherited)?;
            let (streams, stdio) = ends.connect(&self.guest_ports).await?;
            agent
                .create_process(target.name(), spec_json.unwrap_or_default(), stdio)
                .await?;
            if let Some(terminal) = &terminal {
                set_size(agent, target.name(), terminal).await;
            }
            Ok::<_, SandboxError>(streams)
        };
        match made.await {
            Ok(streams) => {
                target.process.created(streams);
                tokio::spawn(Arc::clone(self).attend(agent.clone(), target.clone()));
                Ok(())
            }
            Err(err) => {
                let status = match &err {
                    SandboxError::Agent(err) => status_of_failed_start(err),
                    _ => OWN_ERROR,
                };
                target.process.stopped(Exit {
                    status,
                    at: SystemTime::now(),
                    reason: Some(Chain(&err).to_string()),
                    oom_killed: false,
                });
                Err(err)
            }
        }
    }

    /// Waits for a process's end, and for its output to be delivered.
    pub(super) async fn attend(self: Arc<Self>, agent: AgentClient, target: Target) {
        let exit = tokio::select! {
            reply = agent.wait_process(target.name()) => match reply {
                Ok(reply) => Exit {
                    status: reply.exit_status.min(255),
                    at: SystemTime::now(),
                    reason: None,
                    oom_killed: reply.oom_killed,
                },
                Err(err) => {
                    self.fail(match err {
                        AgentError::Lost => Fault::AgentLost,
                        err => Fault::Misbehaved(format!(
                            "the agent cannot say how a process ended: {}",
                            Chain(&err)
                        )),
                    });
                    Exit::died(self.ended().await.to_string())
                }
            },
            exit = self.outlive_kill(&target) => exit,
            reason = self.ended() => Exit::died(reason.to_string()),
        };
        if let Some(streams) = target.process.take_streams() {
            tokio::select! {
                () = streams.finish(target.process.killed()) => {}
                () = self.out_of_time() => tracing::warn!("undelivered output is dropped"),
            }
        }
        let oom_killed = exit.oom_killed;
        if !target.process.stopped(exit.clone()) {
            return;
        }
        self.after_the_end(&target);
        let container = target.container.id.clone();
        if oom_killed {
            self.publish(Event::Oom {
                container: container.clone(),
            });
        }
        self.publish(Event::Exit {
            container,
            exec: target.exec,
            exit,
        });
    }

    /// Answers when a process is still there long after it was killed: an agent that
    /// does not end the container's own process is of no use, and ends with the
    /// microVM; another process is given up.
    async fn outlive_kill(&self, target: &Target) -> Exit {
        // The sender lives as long as the process is known.
        let _ = target.process.killed().wait_for(|killed| *killed).await;
        let mut seen = None;
        for grace in 0..KILL_GRACES {
            target.process.with_streams(|streams| {
                seen = Some(streams.cut_if_stuck(seen));
                if grace == KILL_GRACES / 2 {
                    streams.cut();
                }
            });
            tokio::time::sleep(DRAIN_GRACE).await;
        }
        if target.exec.is_some() {
            return Exit::died("it did not end when it was killed".to_owned());
        }
        let what = "the agent did not kill a process when told to".to_owned();
        self.fail(Fault::Misbehaved(what));
        Exit::died(self.ended().await.to_string())
    }

    fn after_the_end(&self, target: &Target) {
        self.changed();
        if target.exec.is_none() && target.container.closes_at_end() {
            self.close(Close::Quit);
        }
    }

    /// Output is waited for as long as its reader likes, until the end of all.
    async fn out_of_time(&self) {
        self.close_asked().await;
        tokio::time::sleep(CLOSING_GRACE / 2).await;
    }

    pub async fn wait(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<Exit, SandboxError> {
        let target = self.target(id, exec)?;
        Ok(target.process.wait().await)
    }

    pub async fn kill(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
        signal: u32,
        all: bool,
    ) -> Result<(), SandboxError> {
        let target = self.target(id, exec)?;
        if target.process.exit().is_some() {
            return Err(SandboxError::AlreadyEnded);
        }
        target.process.must_be_alive()?;
        if signal == SIGKILL {
            target.process.kill();
        }
        let agent = self.agent().await?;
        match agent.signal(target.name(), signal, all).await {
            Err(
                err @ AgentError::Refused {
                    code: Code::NOT_FOUND,
                    ..
                },
            ) => Err(err.into()),
            // Who attends to it sees to it, whatever the agent says.
            Err(err) if signal == SIGKILL => {
                tracing::warn!("the agent does not kill {id}: {}", Chain(&err));
                Ok(())
            }
            result => Ok(result?),
        }
    }

    pub async fn resize(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
        rows: u32,
        columns: u32,
    ) -> Result<(), SandboxError> {
        let target = self.target(id, exec)?;
        target.process.must_be_alive()?;
        let agent = self.agent().await?;
        Ok(agent.resize(target.name(), rows, columns).await?)
    }

    pub fn close_stdin(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<(), SandboxError> {
        self.target(id, exec)?.process.close_stdin();
        Ok(())
    }
}

/// Whether the agent has not begun with a start: nothing may begin now, or what was to
/// has ended.
fn is_no_start(err: &AgentError) -> bool {
    let codes = [Code::FAILED_PRECONDITION, Code::ABORTED];
    matches!(err, AgentError::Refused { code, .. } if codes.contains(code))
}

fn status_of_failed_start(err: &AgentError) -> u32 {
    match err {
        AgentError::Refused { code, .. } if *code == Code::NOT_FOUND => NOT_FOUND,
        AgentError::Refused { code, .. } if *code == Code::PERMISSION_DENIED => CANNOT_EXECUTE,
        _ => OWN_ERROR,
    }
}
