// SPDX-License-Identifier: GPL-2.0
//! The examples in the documentation are understood by the program.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use launcher::cli::file as options_file;
use launcher::cli::{self, Cli};

/// README.md, the book and its labs.
fn documents() -> Vec<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = |path: &str| fs::read_dir(top.join(path)).unwrap();
    let book = folder("Documentation").map(|entry| entry.unwrap().path());
    let labs = folder("Documentation/labs").map(|entry| entry.unwrap().path().join("README.md"));
    let all = book.chain(labs).chain([top.join("README.md")]);
    all.filter(|path| path.is_file()).collect()
}

fn manual() -> String {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(top.join("Documentation/command.md")).unwrap()
}

/// The blocks of `kind` in a document.
fn blocks(document: &str, kind: &str) -> Vec<String> {
    let begin = format!("```{kind}\n");
    let parts = document.split(&begin).skip(1);
    parts
        .map(|part| part.split("```").next().unwrap().to_owned())
        .collect()
}

/// The calls of lg in a line for the shell.
fn calls(line: &str) -> Vec<Vec<String>> {
    let words = shlex::split(line).unwrap_or_else(|| panic!("not for a shell: {line}"));
    // A word that ends in one is followed by it.
    let parts = |word: String| match word.strip_suffix(';') {
        Some(before) => vec![before.to_owned(), ";".to_owned()],
        None => vec![word],
    };
    let words: Vec<_> = words.into_iter().flat_map(parts).collect();
    let commands = words.split(|word| ["|", "&&", "||", "&", ";"].contains(&word.as_str()));
    let mut calls = Vec::new();
    for command in commands {
        // Some run on the test machine.
        let command = match command {
            [testhost, rest @ ..] if testhost == "scripts/testhost" => {
                let end = rest.iter().position(|word| word == "--");
                end.map_or(&[][..], |end| &rest[end + 1..])
            }
            command => command,
        };
        if command.first().is_some_and(|word| word == "lg") {
            let words = command.iter().filter(|word| !word.starts_with(['>', '<']));
            calls.push(words.cloned().collect());
        }
    }
    calls
}

#[test]
fn every_example_is_a_command_line() {
    let mut count = 0;
    for path in documents() {
        let document = fs::read_to_string(&path).unwrap();
        for line in blocks(&document, "sh")
            .iter()
            .flat_map(|block| block.lines())
        {
            for call in calls(line) {
                let parsed = Cli::try_parse_from(&call);
                assert!(
                    parsed.is_ok(),
                    "{}: {line}\n{}",
                    path.display(),
                    parsed.unwrap_err()
                );
                count += 1;
            }
        }
    }
    assert!(count >= 30, "only {count} examples");
}

#[test]
fn calls_are_found() {
    assert_eq!(calls("make run  # lg run"), [[""; 0]; 0]);
    let found =
        calls("echo 'a; b' | scripts/testhost --mem 1G -- lg run -- cat >x && lg run; true");
    assert_eq!(found, [&["lg", "run", "--", "cat"][..], &["lg", "run"]]);
}

#[test]
fn the_file_of_options_is_one() {
    let [example] = &blocks(&manual(), "toml")[..] else {
        panic!("there is one")
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lg.toml");
    fs::write(&path, example).unwrap();
    let arguments: Vec<OsString> = vec!["lg".into(), "run".into(), "--config".into(), path.into()];
    let cli::Command::Run(run) = Cli::try_parse_from(&arguments).unwrap().command else {
        unreachable!()
    };
    let run = options_file::complete(run, &arguments).unwrap();
    assert_eq!(run.memory, 2 << 30);
    assert_eq!(run.command, ["./test.sh", "--all"]);
    assert_eq!((run.share.len(), run.disk.len(), run.env.len()), (2, 1, 2));
}

#[test]
fn the_record_has_the_keys_that_are_told() {
    let keys = |record: &serde_json::Value| -> BTreeSet<String> {
        let seconds = record["seconds"].as_object().unwrap().keys();
        record
            .as_object()
            .unwrap()
            .keys()
            .chain(seconds)
            .cloned()
            .collect()
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("record");
    let lg = Command::new(env!("CARGO_BIN_EXE_lg"))
        .args(["run", "/no/such/kernel", "--json"])
        .arg(&path)
        .output();
    assert_eq!(lg.unwrap().status.code(), Some(125));
    let written = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let [example] = &blocks(&manual(), "json")[..] else {
        panic!("there is one")
    };
    assert_eq!(
        keys(&serde_json::from_str(example).unwrap()),
        keys(&written)
    );
}
