//! `palisade explain`: for the bytes of each `tests/explain/NAME.http`, what it prints stands in `NAME.txt` and `NAME.json`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::harness::palisade::{binary, finish};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/explain")
}

/// What is printed, without what differs from run to run.
fn explain(arguments: &[&str], file: Option<&Path>) -> String {
    let dir = tempfile::TempDir::new().unwrap();
    let mut command = binary();
    command.current_dir(dir.path()).arg("explain").args(arguments).args(file);
    let output = finish(&mut command, dir.path());
    assert!(output.status.success(), "{file:?}: {}", String::from_utf8_lossy(&output.stderr));
    steady(&String::from_utf8(output.stdout).unwrap())
}

/// Request ids and moments have a fixed length, so the length of the head stays true.
fn steady(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((at, name)) =
        ["x-request-id: ", "x-request-start: "].iter().filter_map(|name| rest.find(name).map(|at| (at, *name))).min()
    {
        let (before, from) = rest.split_at(at + name.len());
        out.push_str(before);
        out.push('~');
        rest = &from[from.find("\\r").unwrap()..];
    }
    out + rest
}

#[test]
fn each_file_is_explained_as_it_is_written() {
    let mut files: Vec<_> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "http"));
    assert!(files.len() >= 8);
    let mut wrong = Vec::new();
    for file in &files {
        for (arguments, end) in [(&[][..], "txt"), (&["--json"][..], "json")] {
            let (printed, golden) = (explain(arguments, Some(file)), file.with_extension(end));
            // UPDATE_EXPLAIN=1 writes the files anew; their difference is what is to be reviewed.
            if std::env::var_os("UPDATE_EXPLAIN").is_some() {
                fs::write(&golden, &printed).unwrap();
            }
            if fs::read_to_string(&golden).unwrap_or_default() != printed {
                wrong.push(format!("{}:\n{printed}", golden.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bytes_come_from_standard_input_as_well_and_the_configuration_counts() {
    let dir = tempfile::TempDir::new().unwrap();
    let config = dir.path().join("proxy.toml");
    fs::write(&config, "domains = [\"other.example\"]\nupstream.address = \"127.0.0.1:1\"\n").unwrap();
    for arguments in [&["explain"][..], &["explain", "-"]] {
        let mut command = binary();
        command.args(arguments).arg("--config").arg(&config);
        command.stdin(Stdio::from(File::open(folder().join("passes.http")).unwrap()));
        let printed = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(printed.contains("refused (unknown_host, 421"), "{printed}");
        assert!(printed.contains("Puma gets nothing."), "{printed}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = binary().args(["explain", "/nowhere.http"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("/nowhere.http: "));
}
