//! Hooks of a container's life, and what their failure means.

use std::path::Path;

use serde_json::{Value, json};

use super::{Engine, adopt, reap};

/// A hook that notes its name and the state it is given.
fn note(engine: &Engine, name: &str) -> Value {
    let dir = engine.path("notes");
    std::fs::create_dir_all(&dir).unwrap();
    let script = format!(
        "cat > {dir}/{name}.json; echo {name} >> {dir}/order",
        dir = dir.display()
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] })
}

fn failing() -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", "echo no luck; exit 4"] })
}

fn noted(engine: &Engine, name: &str) -> Value {
    let path = engine.path("notes").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn order(engine: &Engine) -> String {
    std::fs::read_to_string(engine.path("notes/order")).unwrap_or_default()
}

#[test]
fn each_runs_in_its_place_with_the_state_of_the_moment() {
    adopt();
    let engine = Engine::new("ok");
    let hooks: Value = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ]
    .iter()
    .map(|&name| (name.to_owned(), json!([note(&engine, name)])))
    .collect::<serde_json::Map<_, _>>()
    .into();
    engine.spec(&["sleep"], |spec| spec["hooks"] = hooks);
    engine.create().ok();
    let pid = engine.pid();
    assert_eq!(order(&engine), "prestart\ncreateRuntime\ncreateContainer\n");
    for name in ["prestart", "createRuntime", "createContainer"] {
        let state = noted(&engine, name);
        assert_eq!(state["status"], "creating", "{name}");
        assert_eq!(state["id"], "box", "{name}");
        assert_eq!(state["pid"], pid.as_raw_nonzero().get(), "{name}");
        assert_eq!(state["bundle"], json!(engine.path("bundle")), "{name}");
    }
    engine.run(&["start", "box"]).ok();
    assert_eq!(noted(&engine, "poststart")["status"], "running");
    // A changed bundle changes nothing.
    std::fs::write(engine.path("bundle/config.json"), "{}").unwrap();
    engine.run(&["delete", "--force", "box"]).ok();
    let last = noted(&engine, "poststop");
    assert_eq!(last["status"], "stopped");
    assert!(last.get("pid").is_none(), "{last}");
    reap(pid);
    engine.nothing_is_left();
}

#[test]
fn the_containers_id_is_that_of_its_root() {
    adopt();
    let engine = Engine::new("ok");
    let hooks = ["createRuntime", "createContainer", "poststop"]
        .map(|name| (name.to_owned(), json!([note(&engine, name)])));
    let hooks: Value = hooks.into_iter().collect::<serde_json::Map<_, _>>().into();
    engine.spec(&["sleep"], |spec| spec["hooks"] = hooks);
    let root = engine.path("another");
    let in_root = |args: &[&str]| {
        let root = ["--root", root.to_str().unwrap()];
        engine.run(&[&root, args].concat())
    };
    let (bundle, pid_file) = (engine.path("bundle"), engine.path("init.pid"));
    let (bundle, pid_file) = (bundle.to_str().unwrap(), pid_file.to_str().unwrap());
    // Which no sandbox could be called.
    let id = "_+box";
    in_root(&["create", "--bundle", bundle, "--pid-file", pid_file, id]).ok();
    // For the hooks inside.
    let told = std::fs::read_to_string(engine.path("name")).unwrap();
    assert_eq!(told, id);
    in_root(&["delete", "--force", id]).ok();
    reap(engine.pid());
    for name in ["createRuntime", "createContainer", "poststop"] {
        assert_eq!(noted(&engine, name)["id"], id, "{name}");
    }
    engine.nothing_is_left();
}

#[test]
fn a_network_namespace_is_there_before_the_container() {
    adopt();
    let engine = Engine::new("ok");
    let script = format!(
        "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); readlink /proc/$pid/ns/net > {}",
        engine.path("netns").display()
    );
    let hook = json!({
        "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"],
    });
    engine.spec(&["sleep"], |spec| {
        spec["hooks"]["createRuntime"] = json!([hook]);
    });
    engine.create().ok();
    let seen = std::fs::read_to_string(engine.path("netns")).unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(seen.starts_with("net:["), "{seen}");
    assert_ne!(Path::new(seen.trim()), own);
    engine.run(&["delete", "-f", "box"]).ok();
    reap(engine.pid());
}

#[test]
fn a_failure_before_the_container_is_creates_and_leaves_nothing() {
    adopt();
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let engine = Engine::new("ok");
        let last = note(&engine, "poststop");
        engine.spec(&["sleep"], |spec| {
            spec["hooks"] = json!({ kind: [failing()], "poststop": [last] });
        });
        let said = engine.create();
        said.fails(1, &format!("{kind} hook #0"));
        said.fails(1, "no luck");
        assert_eq!(order(&engine), "poststop\n", "{kind}");
        assert!(!engine.path("init.pid").exists());
        engine.nothing_is_left();
    }
}

#[test]
fn a_failure_after_the_start_ends_the_container() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |spec| {
        spec["hooks"]["poststart"] = json!([failing()]);
    });
    engine.create().ok();
    engine.run(&["start", "box"]).fails(1, "poststart hook #0");
    assert_eq!(reap(engine.pid()).code(), Some(137));
    assert_eq!(engine.status(), "stopped");
    engine.run(&["delete", "box"]).ok();
    engine.nothing_is_left();
}

#[test]
fn a_failure_after_the_end_is_a_warning() {
    adopt();
    let engine = Engine::new("ok");
    let second = note(&engine, "second");
    engine.spec(&["sleep"], |spec| {
        spec["hooks"]["poststop"] = json!([failing(), second]);
    });
    engine.create().ok();
    engine.run(&["delete", "box"]).ok();
    reap(engine.pid());
    assert_eq!(order(&engine), "second\n");
    let log = std::fs::read_to_string(engine.path("log.json")).unwrap();
    assert!(
        log.contains("\"warning\"") && log.contains("no luck"),
        "{log}"
    );
    engine.nothing_is_left();
}
