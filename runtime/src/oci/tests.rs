//! The command line: every form in which engines call.

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn lines_of_engines_are_understood() {
    for line in [
        // go-runc, by containerd's shim for Docker and Kubernetes
        "lazaret-oci --root /run/r/moby --log /b/log.json --log-format json --systemd-cgroup \
         create --bundle /b --pid-file /b/init.pid --console-socket /tmp/pty.sock \
         --no-pivot --no-new-keyring ID",
        "lazaret-oci --root /r --rootless=false start ID",
        "lazaret-oci --root /r state ID",
        "lazaret-oci --root /r kill --all ID 9",
        "lazaret-oci --root /r kill ID 15",
        "lazaret-oci --root /r delete --force ID",
        "lazaret-oci --root /r exec --process /tmp/runc-process1 --console-socket /s --detach \
         --pid-file /b/x.pid ID",
        "lazaret-oci --root /r ps --format json ID",
        "lazaret-oci --root /r events --stats ID",
        "lazaret-oci --root /r events --interval=5s ID",
        "lazaret-oci --root /r update --resources - ID",
        "lazaret-oci --root /r pause ID",
        "lazaret-oci --root /r resume ID",
        "lazaret-oci --root /r list --format=json",
        "lazaret-oci --root /r checkpoint --image-path /i --work-path /w --leave-running ID",
        "lazaret-oci --root /r restore --image-path /i --detach -no-subreaper --bundle /b ID",
        // conmon, for podman
        "lazaret-oci --systemd-cgroup --log-format=json --log /l create --bundle /b \
         --pid-file /p --console-socket /c ID",
        "lazaret-oci exec --pid-file /p --process /s --detach --console-socket /c ID",
        "lazaret-oci exec --pid-file /p --process /s --detach --preserve-fds 0 ID",
        "lazaret-oci update --resources=/tmp/res.json ID",
        // buildah
        "lazaret-oci create --bundle /b --pid-file /b/pid --no-new-keyring buildah-x",
        // engines with arguments of their configuration before their own
        "lazaret-oci --systemd-cgroup --root /a --log /a --root /r --log /l --systemd-cgroup \
         create --bundle /a --bundle /b ID",
        // people
        "lazaret-oci run -b /b -d --keep ID",
        "lazaret-oci exec -t -u 1:2 -e A=b --cap CAP_KILL -g 5 --cwd / ID ls -l --color",
        "lazaret-oci ps ID -ef",
        "lazaret-oci spec -b /b",
        "lazaret-oci features",
        "lazaret-oci --debug list -q",
    ] {
        if let Err(err) = parse(line) {
            panic!("{line}: {err}");
        }
    }
}

#[test]
fn arguments_of_an_execd_program_are_its_own() {
    let line = "lazaret-oci exec ID program --help -t --root x";
    let Command::Exec(args) = parse(line).unwrap().command else {
        panic!("another verb");
    };
    assert_eq!(format!("{args:?}").matches("--help").count(), 1, "{args:?}");
    assert!(format!("{args:?}").contains("tty: false"), "{args:?}");
}

#[test]
fn the_version_is_what_engines_read() {
    let err = parse("lazaret-oci --version").unwrap_err();
    assert_eq!(err.kind(), clap::error::ErrorKind::DisplayVersion);
    let text = err.to_string();
    // go-runc: three lines; `version ` once in the first, `: ` once in the others.
    let lines: Vec<&str> = text.trim().lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0].split("version ").count(), 2, "{text}");
    assert!(lines[1].starts_with("commit: "), "{text}");
    assert_eq!(lines[2], "spec: 1.2.0");
}

#[test]
fn mistakes_are_errors() {
    for line in [
        "lazaret-oci",
        "lazaret-oci frobnicate",
        "lazaret-oci create",
        "lazaret-oci create --frob ID",
        "lazaret-oci --log-format xml list",
        "lazaret-oci start",
        "lazaret-oci kill",
        "lazaret-oci list extra",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn the_last_of_equal_flags_counts_and_lists_grow() {
    let line = "lazaret-oci --root /a --root /b exec -e A=1 -e B=2 --cwd /a --cwd /b ID true";
    let cli = parse(line).unwrap();
    assert_eq!(cli.globals.root.unwrap(), Path::new("/b"));
    let text = format!("{:?}", cli.command);
    assert!(text.contains(r#"["A=1", "B=2"]"#), "{text}");
    assert!(
        text.contains(r#""/b""#) && !text.contains(r#""/a""#),
        "{text}"
    );
}

#[test]
fn the_root_of_the_host_is_no_root_of_containers() {
    for root in ["/", "//", "/..", "/a/..", "/a/./../../"] {
        let err = clean(Path::new(root)).unwrap_err();
        assert!(matches!(err, failure::OciError::RootOfHost), "{root}");
    }
    for root in [
        "/run/x",
        "/run/x/",
        "/run/./x",
        "/run/y/../x//",
        "/../run/x",
    ] {
        // As text: a trailing slash makes no other `Path`.
        let clean = clean(Path::new(root)).unwrap();
        assert_eq!(clean.to_str(), Some("/run/x"), "{root}");
    }
}
