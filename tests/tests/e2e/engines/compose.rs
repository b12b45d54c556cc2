//! `docker compose`: two services, one that needs the other by name.

use lazaret_tests::Kind;

const FILE: &str = r#"
name: e2e-compose
services:
  web:
    image: busybox
    runtime: RUNTIME
    command: sh -c "mkdir /www; echo composed >/www/index.html; exec httpd -f -p 80 -h /www"
    healthcheck:
      test: wget -q -O /dev/null http://127.0.0.1/
      interval: 1s
      timeout: 30s
      retries: 30
    ports: ["127.0.0.1:18090:80"]
  client:
    image: busybox
    runtime: RUNTIME
    depends_on: { web: { condition: service_healthy } }
    volumes: ["kept:/kept"]
    command: sh -c "wget -q -O - http://web/ | tee /kept/answer; exec sleep 1000"
volumes:
  kept:
"#;

#[test]
#[ignore = "minutes long: make test-full"]
fn two_services_come_up_and_go() {
    super::with(Kind::Docker, "compose", |engine| {
        let lazaret = engine.lazaret();
        let file = lazaret.file("compose.yaml", FILE.replace("RUNTIME", engine.runtime()));
        let compose = |arguments: &str| {
            let command = format!("docker compose -f {file} {arguments}");
            let outcome = lazaret.sh_cmd(&command).output();
            outcome.status(0);
            outcome.text()
        };
        compose("up -d");
        lazaret.sh(&format!(
            "until docker compose -f {file} logs client | grep composed; do sleep 0.5; done"
        ));
        let get = "busybox wget -q -O - http://127.0.0.1:18090/";
        assert_eq!(lazaret.sh(get), "composed\n");
        assert_eq!(compose("exec -T client cat /kept/answer"), "composed\n");
        assert_eq!(compose("ps --services").lines().count(), 2);
        compose("down -v -t 1");
        assert_eq!(engine.ok(["ps", "-aq"]), "");
    });
}
