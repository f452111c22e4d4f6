// SPDX-License-Identifier: GPL-2.0
//! Every code of an error is given by one file, and its texts stand in one place.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use launcher::report::codes::Code;

/// All sources of the Launcher but the table of the codes, without their tests, lines joined as the
/// compiler joins them.
fn sources() -> Vec<(PathBuf, String)> {
    fn visit(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs") && !path.ends_with("codes.rs")
            {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
                let mut parts = code.split("\\\n");
                let first = parts.next().unwrap_or_default().to_owned();
                found.push((path, parts.fold(first, |all, part| all + part.trim_start())));
            }
        }
    }
    let mut found = Vec::new();
    visit(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert!(found.len() > 50, "{} files are too few", found.len());
    found
}

/// Does `text` name this code, and not one whose name begins like it?
fn names(text: &str, code: Code) -> bool {
    let name = format!("Code::{code:?}");
    text.match_indices(&name).any(|(at, _)| {
        let next = text[at + name.len()..].chars().next();
        !next.is_some_and(|next| next.is_alphanumeric())
    })
}

#[test]
fn every_code_is_given_by_one_file() {
    let sources = sources();
    for &code in Code::ALL {
        let files = sources.iter().filter(|(_, text)| names(text, code));
        let files: Vec<_> = files.map(|(path, _)| path).collect();
        assert_eq!(files.len(), 1, "{code} ({code:?}) is named by {files:?}");
    }
}

#[test]
fn no_text_of_a_code_is_typed_again() {
    let sources = sources();
    let mut titles = HashSet::new();
    for &code in Code::ALL {
        let texts = code.explanation();
        assert!(
            titles.insert(texts.title),
            "{code}: another has the same title"
        );
        for text in [texts.title.to_owned(), code.fix().to_string()] {
            let literal = format!("{text:?}");
            for (path, source) in &sources {
                assert!(
                    !source.contains(&literal),
                    "{code}: {} has {literal}",
                    path.display()
                );
            }
        }
    }
}
