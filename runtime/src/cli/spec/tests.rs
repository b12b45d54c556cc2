use super::*;

fn input() -> SpecInput {
    SpecInput {
        args: vec!["sh".into(), "-c".into(), "true".into()],
        env: vec!["PATH=/bin".into(), "HOSTNAME=box".into()],
        cwd: "/work".into(),
        user: ProcessUser {
            uid: 0,
            gid: 0,
            additional_gids: vec![10],
            home: "/root".into(),
        },
        terminal: true,
        hostname: "box".into(),
        read_only: true,
        volumes: vec![
            Volume {
                source: "/b".into(),
                destination: "/data/deep".into(),
                read_only: false,
            },
            Volume {
                source: "/a".into(),
                destination: "/data".into(),
                read_only: true,
            },
            Volume {
                source: "/h".into(),
                destination: "/etc/hosts".into(),
                read_only: true,
            },
        ],
        directory: "/var/lib/lazaret/containers/x".into(),
        nano_cpus: 1_500_000_000,
        memory: 64 << 20,
        cgroup: "/lazaret/x".into(),
        log: "/var/lib/lazaret/containers/x/container-json.log".into(),
        auto_shutdown: true,
    }
}

#[test]
fn the_whole_specification_is_as_reviewed() {
    let text = serde_json::to_string_pretty(&spec(&input())).unwrap() + "\n";
    let golden = include_str!("golden.json");
    if std::env::var_os("LAZARET_UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/spec/golden.json");
        std::fs::write(path, &text).unwrap();
        return;
    }
    assert_eq!(
        text, golden,
        "review with LAZARET_UPDATE_GOLDEN=1 and git diff"
    );
}

#[test]
fn it_is_a_valid_specification() {
    let spec: oci_spec::runtime::Spec = serde_json::from_value(spec(&input())).unwrap();
    assert_eq!(spec.hostname().as_deref(), Some("box"));
}

#[test]
fn limits_that_are_not_set_are_not_mentioned() {
    let spec = spec(&SpecInput {
        nano_cpus: 0,
        memory: 0,
        auto_shutdown: false,
        ..input()
    });
    assert_eq!(spec["linux"]["resources"], serde_json::json!({}));
    assert!(
        spec["annotations"]
            .get("dev.lazaret.auto-shutdown")
            .is_none()
    );
}

#[test]
fn only_root_has_capabilities_in_effect() {
    let user = ProcessUser {
        uid: 7,
        ..ProcessUser::default()
    };
    let process = process(&[], &[], "/", &user, false);
    assert_eq!(process["capabilities"]["effective"], serde_json::json!([]));
    assert_eq!(
        process["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        CAPABILITIES.len()
    );
}
