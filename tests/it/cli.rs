//! The command line: exit statuses, errors that say what would be right, and nothing secret.

use crate::support::{
    daemon::{POINTSD, Setup, pointsd, told},
    ledger::{Kind, Place},
    program, rabbit,
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    process::{Command, Output},
};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    // In a folder without a pointsd.toml.
    let folder = tempfile::tempdir().unwrap();
    pointsd(arguments).envs(environment.iter().copied()).current_dir(folder.path()).output().unwrap()
}

#[test]
fn exit_statuses_are_those_of_the_contract() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new("amqp://127.0.0.1:1/%2f", &place.url, "");
    let empty = setup.folder.path().join("empty.jsonl");
    std::fs::write(&empty, "\n").unwrap();
    let empty = empty.to_str().unwrap();
    for (arguments, status, said) in [
        // Before there is a ledger.
        (&["balance", "u"][..], 1, "there is no ledger"),
        (&["migrate"], 0, "migrated: 00000000000001"),
        (&["migrate"], 0, "the ledger's schema is up to date"),
        (&["balance", "u"], 0, "0 points"),
        (&["balance", " u"], 2, "has leading or trailing whitespace"),
        (&["balance"], 2, "Usage"),
        (&["payment", "p"], 1, "payment p not found"),
        (&["reconcile"], 0, "0 credits not found paid by a check"),
        (&["reconcile", "--apply"], 2, "pay_status.source is \"none\""),
        (&["payment", "p", "--live"], 2, "pay_status.source is \"none\""),
        (
            &["verify"],
            0,
            "0 credits (0 not found paid by a check), 0 adjustments, 0 users, 0 points: ledger consistent",
        ),
        (&["replay", empty], 0, "credited 0, duplicate 0, conflict 0, malformed 0, rejected 0"),
        (&["replay", "/nonexistent"], 1, "/nonexistent cannot be read"),
        (&["publish", empty], 1, "broker: cannot connect: 127.0.0.1:1"),
        (&["topology"], 0, "x-delivery-limit = 1000"),
        (&["topology", "check"], 1, "broker: cannot connect"),
        (&["check-config"], 0, "[broker]"),
        (&["unknown"], 2, "unrecognized subcommand"),
        (&["--help"], 0, "Exit status"),
        (&["--version"], 0, "pointsd 0.1.0"),
    ] {
        let output = setup.run(arguments);
        let text = told(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
    place.execute("INSERT INTO points_balances (user_id, balance) VALUES ('u', 5)");
    let output = setup.run(&["verify"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).starts_with("balance of user u: must be 0, is 5\n"), "{}", told(&output));
    assert!(told(&output).ends_with("1 violation\n"), "{}", told(&output));
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new("amqp://127.0.0.1:1/%2f", &place.url, "");
    assert_eq!(setup.run(&["migrate"]).status.code(), Some(0));
    for (arguments, status, said) in [
        (&["balance", " u", "--json"][..], 2, "the user's id has leading or trailing whitespace"),
        (&["balance", "--json"], 2, "required arguments"),
        (&["unknown", "--json"], 2, "unrecognized subcommand"),
        (&["verify", "--json", "--config", "/nonexistent"], 2, "/nonexistent cannot be read"),
        (&["payment", "p", "--ledger-only", "--json"], 1, "payment p not found"),
        (&["replay", "/nonexistent", "--json"], 1, "/nonexistent cannot be read"),
        (&["topology", "check", "--json"], 1, "broker: cannot connect"),
        (&["dead", "list", "--json"], 1, "broker: cannot connect"),
        (&["reconcile", "--apply", "--json"], 2, "pay_status.source is"),
        (&["outbox", "drop", "--all", "--json"], 2, "give --yes"),
    ] {
        let output = pointsd(arguments).current_dir(setup.folder.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap())
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"));
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        assert_eq!(last["exit_code"], status, "{arguments:?}: {text}");
        assert!(last["error"].as_str().unwrap().contains(said), "{arguments:?}: {text}");
    }
    // Points are numbers, however large their sum is.
    place.execute("INSERT INTO points_balances (user_id, balance) VALUES ('u', 9000000000000000000)");
    let report = setup.json(&["verify", "--json"]);
    let shown = (&report["points"], &report["findings"][0]["found"]);
    assert_eq!(shown, (&9_000_000_000_000_000_000_u64.into(), &"9000000000000000000".into()), "{report}");
    assert!(setup.json(&["balance", "u", "--json"])["balance"].is_u64());
}

#[test]
fn every_command_explains_itself() {
    for command in
        ["run", "replay", "publish", "migrate", "check-config", "topology", "balance", "payment", "verify", "reconcile"]
    {
        let output = run(&[command, "--help"], &[]);
        assert!(output.status.success() && output.stdout.len() > 100, "{command}: {}", told(&output));
    }
}

#[test]
fn a_wrong_configuration_is_told_whole_and_is_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.toml");
    std::fs::write(&file, "[broker]\nprefetch = 0\nurl_file = \"/nonexistent\"\n[ledgr]\nurl = \"x\"\n").unwrap();
    let name = file.to_str().unwrap();
    for command in ["run", "check-config", "verify"] {
        let output = run(&["--config", name, command], &[]);
        assert_eq!(output.status.code(), Some(2));
        let expected = format!(
            "{name}:2: broker.prefetch: given 0; must be a whole number from 1 to 2000\n\
             {name}:3: broker.url_file: /nonexistent cannot be read: No such file or directory (os error 2)\n\
             {name}:5: ledgr.url: unknown key; did you mean ledger.url?\n"
        );
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
    }
    let output = run(&["--config", "/nonexistent.toml", "run"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("/nonexistent.toml cannot be read"), "{}", told(&output));
    let output = run(&["check-config"], &[("POINTSD_BROKER__PREFETCH", "x")]);
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
}

#[test]
fn check_config_prints_what_is_in_force_without_secrets() {
    let environment = [
        ("POINTSD_BROKER__URL", "amqp://me:s3cret@rabbit/%2f"),
        ("POINTSD_LEDGER__URL", "postgres://me:s3cret@db/points?sslpassword=s3cret"),
    ];
    for arguments in [&["check-config"][..], &["check-config", "--json"]] {
        let output = run(arguments, &environment);
        let text = told(&output);
        assert!(output.status.success() && !text.contains("s3cret"), "{text}");
        assert!(text.contains("amqp://me:***@rabbit/%2f") && text.contains("postgres://me:***@db/points"), "{text}");
    }
    // What it prints can be read again.
    let defaults = run(&["check-config"], &[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("printed.toml");
    std::fs::write(&file, &defaults.stdout).unwrap();
    let again = run(&["--config", file.to_str().unwrap(), "check-config"], &[]);
    assert_eq!(again.stdout, defaults.stdout, "{}", told(&again));
}

#[test]
fn check_config_says_what_it_has_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.toml");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let environment = [("POINTSD_LEDGER__URL", "sqlite:s3cret.db"), ("POINTSD_SERVICE_HOST", "s3cret")];
    let output = run(&["--config", file, "check-config"], &environment);
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "configuration file: {file}\nenvironment variables: POINTSD_LEDGER__URL\n\
             environment variables ignored (not settings): POINTSD_SERVICE_HOST\n"
        )
    );
    let output = run(&["check-config"], &[]);
    let said = "configuration file: none (neither ./pointsd.toml nor /etc/pointsd/pointsd.toml exists)\n\
                environment variables: none\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), said);
    let output = run(&["--config", file, "check-config", "--json"], &environment);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({
        "file": file,
        "environment": ["POINTSD_LEDGER__URL"],
        "ignored_environment": ["POINTSD_SERVICE_HOST"],
    });
    assert_eq!((&json["read_from"], &json["broker"]["prefetch"]), (&expected, &2000.into()), "{json}");
}

#[test]
fn foreign_variables_do_not_stop_the_start_and_a_misspelt_setting_does() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new("amqp://127.0.0.1:1/%2f", &place.url, "");
    let daemon = setup.start_with(|command| {
        command.envs([("POINTSD_SERVICE_HOST", "10.0.0.1"), ("POINTSD_PORT_80_TCP", "tcp://10.0.0.1:80")]);
        // No text, and no setting.
        command.env("POINTSD_NOTE", OsStr::from_bytes(b"\xff"));
    });
    daemon.wait_not_ready("cannot connect");
    let log = daemon.log();
    let named = "POINTSD_NOTE, POINTSD_PORT_80_TCP, POINTSD_SERVICE_HOST";
    assert_eq!(log.matches(named).count(), 1, "{log}");
    assert!(log.contains("credits are not checked") && !log.contains("10.0.0.1"), "{log}");
    assert_eq!(daemon.metric("pointsd_payment_source_configured"), 0.0);
    let verified = told(&setup.run(&["verify"]));
    assert!(verified.starts_with("credits are not checked"), "{verified}");
    assert_eq!(setup.json(&["verify", "--json"])["credits_checked"], false);
    let output = setup.command(&["run"]).env("POINTSD_LEDGER__URRL", "s3cret").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = "environment variable POINTSD_LEDGER__URRL: ledger.urrl: unknown key; did you mean ledger.url?\n";
    assert_eq!(told(&output), said);
    daemon.stop();
}

#[test]
fn an_outdated_or_newer_schema_is_refused_with_what_to_do() {
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let without = |arguments: &[&str]| {
        let output = setup.command(arguments).env("POINTSD_LEDGER__AUTO_MIGRATE", "false").output().unwrap();
        (output.status.code(), told(&output))
    };
    for arguments in [&["replay", "/dev/null"][..], &["balance", "u"]] {
        let (status, text) = without(arguments);
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains("this database has no pointsd schema; run `pointsd migrate`"), "{text}");
    }
    assert_eq!(without(&["migrate"]).0, Some(0));
    assert_eq!(without(&["replay", "/dev/null"]).0, Some(0));
    place.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101')");
    for (command, expected) in [("run", 2), ("verify", 1)] {
        let (status, text) = without(&[command]);
        assert_eq!(status, Some(expected), "{text}");
        assert!(text.contains("the schema is newer than this pointsd"), "{text}");
    }
}

#[test]
fn a_missing_or_outdated_schema_is_waited_for() {
    for kind in [Kind::Postgres, Kind::Sqlite] {
        let place = Place::new(kind);
        let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
        let start = || {
            setup.start_with(|command| {
                command.env("POINTSD_LEDGER__AUTO_MIGRATE", "false");
            })
        };
        let migrate = || {
            let output = setup.run(&["migrate"]);
            assert!(output.status.success(), "{}", told(&output));
        };
        let daemon = start();
        daemon.wait_not_ready("ledger: this database has no pointsd schema; run `pointsd migrate`");
        assert_eq!(daemon.metric(r#"pointsd_paused{dependency="ledger"}"#), 1.0);
        migrate();
        daemon.wait_ready();
        assert_eq!(daemon.log().matches("WARN paused").count(), 1, "{}", daemon.log());
        // It is the writer again.
        if kind == Kind::Sqlite {
            assert!(told(&setup.run(&["migrate"])).contains("another pointsd uses the ledger"));
        }
        daemon.stop();
        place.execute("ALTER TABLE points_credits DROP COLUMN asked_at");
        place.execute("DELETE FROM __diesel_schema_migrations WHERE version = '00000000000004'");
        let daemon = start();
        daemon.wait_not_ready("ledger: the schema is outdated (missing 00000000000004); run `pointsd migrate`");
        migrate();
        daemon.wait_ready();
        daemon.stop();
    }
}

#[test]
fn a_sqlite_ledger_takes_one_writer_and_any_reader() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    for arguments in [&["run"][..], &["replay", "/dev/null"], &["migrate"]] {
        let output = setup.command(arguments).env("POINTSD_HTTP__LISTEN", "127.0.0.1:0").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(told(&output).contains("another pointsd uses the ledger"), "{}", told(&output));
    }
    for arguments in [&["verify"][..], &["balance", "u"]] {
        assert!(setup.run(arguments).status.success());
    }
    daemon.stop();
}

#[test]
fn a_file_that_is_no_ledger_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pointsd.db");
    std::fs::write(&file, "this is no database, and long enough to be looked at as one".repeat(100)).unwrap();
    let setup = Setup::new("amqp://127.0.0.1:1/%2f", &format!("sqlite:{}", file.display()), "");
    for arguments in [&["run"][..], &["replay", "/dev/null"], &["migrate"], &["balance", "u"]] {
        let output = setup.command(arguments).env("POINTSD_HTTP__LISTEN", "127.0.0.1:0").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        assert!(told(&output).contains("file is not a database"), "{}", told(&output));
    }
}

#[test]
fn a_relative_ledger_lies_in_the_state_directory() {
    let state = tempfile::tempdir().unwrap();
    let output = pointsd(&["migrate"]).env("STATE_DIRECTORY", state.path()).current_dir("/").output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert!(state.path().join("pointsd.db").exists());
}

#[test]
fn a_progress_bar_is_shown_on_a_terminal_and_nowhere_else() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new("amqp://127.0.0.1:1/%2f", &place.url, "");
    let file = setup.folder.path().join("recorded.jsonl");
    let line = |payment: u32| format!("{{\"paymentId\":{payment},\"userId\":1,\"integral\":1}}");
    let lines: Vec<String> = (0..20_000).map(line).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let command = format!("{} --config {} replay {}", POINTSD, setup.config().display(), file.display());
    // `script` gives the command a terminal.
    let script = program("script", &["/usr/bin/script"], "bsdutils");
    let terminal = Command::new(script).args(["-qec", &command, "/dev/null"]).env("TERM", "xterm").output().unwrap();
    assert!(terminal.status.success(), "{}", told(&terminal));
    assert!(told(&terminal).contains('%') && told(&terminal).contains("credited 20000"), "{}", told(&terminal));
    let piped = setup.run(&["replay", file.to_str().unwrap()]);
    assert_eq!(told(&piped), "credited 0, duplicate 20000, conflict 0, malformed 0, rejected 0, exhausted 0\n");
}

#[test]
fn standard_input_is_a_file_named_dash() {
    use std::io::Write;
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new("amqp://127.0.0.1:1/%2f", &place.url, "");
    let mut child = setup
        .command(&["replay", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"{\"paymentId\":1,\"userId\":2,\"integral\":3}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(told(&output).starts_with("credited 1,"), "{}", told(&output));
}

#[test]
fn lines_that_are_no_message_are_counted_and_the_rest_goes_on() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new("amqp://127.0.0.1:1/%2f", &place.url, "");
    let file = setup.folder.path().join("recorded.jsonl");
    let mut lines = b"{\"body\":1,\"headers\":[]}\n\xff\xfe\n".to_vec();
    for payment in 0..2500 {
        lines.extend(format!("{{\"paymentId\":{payment},\"userId\":1,\"integral\":1}}\n").bytes());
    }
    std::fs::write(&file, lines).unwrap();
    let output = setup.run(&["replay", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "line 1: malformed: headers: must be an object\n\
         line 2: malformed: body is not UTF-8 from byte 0; must be UTF-8\n\
         credited 2500, duplicate 0, conflict 0, malformed 2, rejected 0, exhausted 0\n"
    );
}
