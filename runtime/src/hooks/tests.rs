//! Hooks as programs that leave traces.

use super::*;

struct Bundle {
    dir: tempfile::TempDir,
}

impl Bundle {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn shell(&self, script: &str) -> Value {
        let script = script.replace("DIR", self.dir.path().to_str().unwrap());
        json!({ "path": "/bin/sh", "args": ["hook", "-c", script], "env": ["A=b c", "PATH=/bin:/usr/bin"] })
    }

    fn run(&self, hooks: &[Value]) -> Result<(), HookError> {
        let spec = json!({
            "ociVersion": "1.2.0",
            "hooks": { "createRuntime": hooks },
            "annotations": { "k": "v" },
        });
        run_hooks(&spec, HookKind::CreateRuntime, &self.state(&spec))
    }

    fn state<'a>(&'a self, spec: &'a Value) -> HookState<'a> {
        HookState {
            id: "box",
            status: "creating",
            pid: Some(7),
            bundle: self.dir.path(),
            spec,
        }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

#[test]
fn a_hook_gets_the_state_its_arguments_and_its_environment_alone() {
    let bundle = Bundle::new();
    let hook =
        bundle.shell("cat > DIR/state; echo $0 > DIR/name; env | sort > DIR/env; pwd > DIR/cwd");
    bundle.run(&[hook]).unwrap();
    let state: Value = serde_json::from_str(&bundle.read("state")).unwrap();
    let expected = json!({
        "ociVersion": "1.2.0", "id": "box", "status": "creating", "pid": 7,
        "bundle": bundle.dir.path(), "annotations": { "k": "v" },
    });
    assert_eq!(state, expected);
    let env = bundle.read("env");
    assert!(env.contains("A=b c\n"), "{env}");
    assert!(!env.contains("CARGO"), "{env}");
    assert_eq!(
        bundle.read("cwd").trim(),
        bundle.dir.path().to_str().unwrap()
    );
}

#[test]
fn a_hook_without_an_environment_has_that_of_this_process() {
    let bundle = Bundle::new();
    let mut hook = bundle.shell("echo $PATH > DIR/path");
    hook.as_object_mut().unwrap().remove("env");
    bundle.run(&[hook.clone()]).unwrap();
    let own = std::env::var("PATH").unwrap();
    assert!(!own.is_empty());
    assert_eq!(bundle.read("path").trim_end(), own);

    hook["args"][2] = "cat /proc/self/environ > $DIR/all".into();
    let spec = json!({
        "process": { "env": ["A=1", format!("DIR={}", bundle.dir.path().display()), "PATH=/bin", "A=2"] },
        "hooks": { "createContainer": [hook] },
    });
    run_hooks(&spec, HookKind::CreateContainer, &bundle.state(&spec)).unwrap();
    let all = bundle.read("all");
    assert!(all.contains("A=2\0"), "{all:?}");
    assert!(!all.contains("A=1\0") && !all.contains("CARGO"), "{all:?}");
}

#[test]
fn a_hook_has_no_signal_blocked() {
    let bundle = Bundle::new();
    nix::sys::signal::SigSet::all().thread_block().unwrap();
    let ran = bundle.run(&[bundle.shell("grep SigBlk: /proc/self/status > DIR/mask")]);
    nix::sys::signal::SigSet::all().thread_unblock().unwrap();
    ran.unwrap();
    assert_eq!(bundle.read("mask"), "SigBlk:\t0000000000000000\n");
}

#[test]
fn the_first_failure_ends_the_list_and_says_what_the_hook_said() {
    let bundle = Bundle::new();
    let hooks = [
        bundle.shell("touch DIR/first"),
        bundle.shell("echo went wrong >&2; exit 3"),
        bundle.shell("touch DIR/third"),
    ];
    let text = bundle.run(&hooks).unwrap_err().to_string();
    assert!(text.contains("createRuntime hook #1"), "{text}");
    assert!(
        text.contains("exit status: 3, output: went wrong"),
        "{text}"
    );
    assert!(bundle.dir.path().join("first").exists());
    assert!(!bundle.dir.path().join("third").exists());
}

#[test]
fn after_the_end_all_hooks_run_whatever_becomes_of_each() {
    let bundle = Bundle::new();
    let hooks = [bundle.shell("exit 1"), bundle.shell("touch DIR/second")];
    let spec = json!({ "ociVersion": "1.2.0", "hooks": { "poststop": hooks } });
    let failed = run_all_hooks(&spec, HookKind::Poststop, &bundle.state(&spec));
    assert_eq!(failed.len(), 1);
    assert!(bundle.dir.path().join("second").exists());
}

#[test]
fn a_hook_out_of_time_is_killed_with_what_it_started() {
    let bundle = Bundle::new();
    let mut hook = bundle.shell("sleep 600 & echo $! > DIR/pid; wait");
    hook["timeout"] = json!(1);
    let err = bundle.run(&[hook]).unwrap_err();
    assert!(
        matches!(err, HookError::TimedOut { seconds: 1, .. }),
        "{err}"
    );
    let pid: u32 = bundle.read("pid").trim().parse().unwrap();
    // Nobody's child: gone, or about to be.
    let deadline = Instant::now() + Duration::from_secs(10);
    while crate::sandbox::state::process_start_time(pid).is_some() {
        assert!(Instant::now() < deadline, "{pid} lives on");
        std::thread::yield_now();
    }
}

#[test]
fn a_hook_that_leaves_something_behind_is_not_waited_for() {
    let bundle = Bundle::new();
    bundle
        .run(&[bundle.shell("sleep 5 & echo $! > DIR/pid")])
        .unwrap();
    let pid = bundle.read("pid").trim().parse().unwrap();
    let left = Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(left, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_state_longer_than_a_pipe_harms_no_hook_that_does_not_read_it() {
    let bundle = Bundle::new();
    let long = "x".repeat(1 << 20);
    let spec = json!({
        "hooks": { "prestart": [bundle.shell("exit 0")] },
        "annotations": { "long": long },
    });
    run_hooks(&spec, HookKind::Prestart, &bundle.state(&spec)).unwrap();
}

#[test]
fn mistakes_are_named_before_anything_runs() {
    let invalid = |hook: Value| {
        let spec = json!({ "hooks": { "poststart": [hook] } });
        hooks_of(&spec, HookKind::Poststart)
            .unwrap_err()
            .to_string()
    };
    assert!(invalid(json!({ "path": "sh" })).contains("not absolute"));
    assert!(invalid(json!({ "path": "/sh", "timeout": 0 })).contains("timeout"));
    assert!(invalid(json!({ "path": "/sh", "env": ["A"] })).contains("env"));
    assert!(invalid(json!({ "args": [] })).contains("hooks.poststart"));
    assert_eq!(hooks_of(&json!({}), HookKind::Poststart).unwrap(), []);
}

#[test]
fn a_stopped_container_has_no_pid() {
    let spec = json!({ "ociVersion": "1.2.0" });
    let state = HookState {
        id: "box",
        status: "stopped",
        pid: None,
        bundle: Path::new("/b"),
        spec: &spec,
    };
    let state: Value = serde_json::from_slice(&state.to_json()).unwrap();
    assert_eq!(state["status"], "stopped");
    assert!(state.get("pid").is_none());
}
