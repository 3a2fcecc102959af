//! Threat: exposure. A secret that somebody put where none belongs is not repeated by the program that refuses it: figment and
//! serde would print the value that they found.

use std::fs;

use crate::harness::palisade::{binary, finish, write_private};

const CANARY: &str = "hunter2-canary";

/// One place for a value: in the file, in a variable, on the command line.
enum At {
    File(&'static str),
    Variable(&'static str, &'static str),
    Flag(&'static str),
    /// The content of a file that a variable names.
    Named(&'static str),
}

/// Every kind of wrong place; `{}` is the secret.
const WRONG: &[At] = &[
    At::File("{}\n"),
    At::File("[{}\n"),
    At::File("app = \"{}\n"),
    At::File("app = \"\"\"\n{}\n"),
    At::File("app = {}\n"),
    At::File("app = { a = \"{}\" }\n"),
    At::File("password = \"{}\"\n"),
    At::File("[upstream]\ncontrol_token = \"{}\"\n"),
    At::File("[upstream]\naddress = \"http://shop:{}@127.0.0.1:3000\"\n"),
    At::File("[upstream]\ncontrol_url = \"http://127.0.0.1:3000/?token={}\"\n"),
    At::File("[upstream]\nslots = \"{}\"\n"),
    At::File("[tls]\nkey = \"{}\"\n"),
    At::File("[tls]\nkey_file = [\"{}\"]\n"),
    At::File("[[tls.certificate]]\nkey_file = { inline = \"{}\" }\n"),
    At::File("[limits]\nbody = \"{}\"\n"),
    At::File("[limits]\nbody = [\"{}\"]\n"),
    At::File("limits = \"{}\"\n"),
    At::File("[limits.body]\na = \"{}\"\n"),
    At::File("[timeouts]\nheader = \"{}\"\n"),
    At::File("[log]\naccess = \"{}\"\n"),
    At::File("[log]\nredact = \"{}\"\n"),
    At::File("listen = \"{}\"\n"),
    At::File("trusted_proxies = [\"{}\"]\n"),
    At::File("profile = \"{}\"\n"),
    At::File("[admin]\nlisten = \"{}\"\n"),
    At::File("[headers]\nrequest_remove = [\"{}{}: x\"]\nnosniff = \"{}\"\n"),
    At::File("[[rate_limit]]\nname = \"{} {}\"\nrate = \"{}\"\n"),
    At::File("[[rate_limit]]\nname = \"a\"\nrate = \"1/s\"\nkey = \"{}\"\n"),
    At::File("[[ban]]\nname = \"a\"\non = \"{}\"\n"),
    At::File("[[audit.ignore]]\nid = \"S01\"\nreason = \"r\"\nuntil = \"{}\"\n"),
    At::File("[[route]]\nmatch = { path = \"/\", token = \"{}\" }\nallow = \"{}\"\n"),
    At::Variable("PALISADE_LIMITS__BODY", "{}"),
    At::Variable("PALISADE_LIMITS", "{}"),
    At::Variable("PALISADE_UPSTREAM__CONTROL_TOKEN", "{}"),
    At::Variable("PALISADE_TLS__KEY", "{}"),
    At::Variable("PALISADE_TOKEN", "{}"),
    At::Variable("PALISADE_TIMEOUTS__HEADER", "\"{}\""),
    At::Variable("PALISADE_LOG__REDACT", "{ password = \"{}\" }"),
    At::Variable("PALISADE_TRUSTED_PROXIES", "[\"{}\"]"),
    At::Variable("PALISADE_RATE_LIMIT", "[{ name = \"{}\" }]"),
    At::Variable("PALISADE_UPSTREAM", "redis://:{}@127.0.0.1"),
    At::Flag("{}"),
    At::Flag("={}"),
    At::Flag("limits.body={}"),
    At::Flag("upstream.control_token={}"),
    At::Flag("tls.passphrase={}"),
    At::Flag("audit.fail_on={}"),
    At::Named("PALISADE_LIMITS__BODY_FILE"),
    At::Named("PALISADE_UPSTREAM__CONTROL_TOKEN_FILE_FILE"),
    At::Named("PALISADE_CONFIG"),
];

#[test]
fn a_secret_in_the_wrong_place_is_refused_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    for (number, place) in WRONG.iter().enumerate() {
        let file = folder.path().join("proxy.toml");
        let named = folder.path().join("named");
        write_private(&named, CANARY);
        for arguments in [&["check"][..], &["run"], &["config", "show"]] {
            let mut command = binary();
            command.args(arguments);
            let text = |template: &str| template.replace("{}", CANARY);
            let mut toml = String::new();
            let is_config = matches!(place, At::Named("PALISADE_CONFIG"));
            match place {
                At::File(template) => toml = text(template),
                At::Variable(name, template) => drop(command.env(name, text(template))),
                At::Flag(template) => drop(command.args(["--set", &text(template)])),
                At::Named(name) => drop(command.env(name, &named)),
            }
            fs::write(&file, toml).unwrap();
            if !is_config {
                command.arg("--config").arg(&file);
            }
            let output = finish(&mut command, folder.path());
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(!said.contains(CANARY), "place {number} of {arguments:?} is repeated: {said}");
            assert_eq!(output.status.code(), Some(3), "place {number} of {arguments:?}: {said}");
            assert!(said.contains("in the configuration"), "{said}");
        }
    }
}
