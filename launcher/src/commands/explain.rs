// SPDX-License-Identifier: GPL-2.0
//! `lg explain`: what an error, an exit status or the death of a Guest means, offline.

use std::ffi::OsStr;
use std::path::Path;

use crate::death::Death;
use crate::report::codes::{self, Code, Explanation};

/// The exit statuses that are not a command's, and what they mean.
const STATUSES: [(u16, &str); 3] = [
    (
        124,
        "the time of --timeout was up. The guest was ended as it was; the end of its log says how far it came.",
    ),
    (
        125,
        "lg itself failed, before or while the guest ran. The error on standard error has a code: lg explain CODE.",
    ),
    (
        255,
        "the guest's kernel panicked, or lg.ko killed the guest because it did what it may not. The reason is on \
         standard error. (A command that exits with 255 looks the same to a shell; --json tells them apart.)",
    ),
];

/// The explanation of `subject`, a code, an exit status or the file with an account of a death.
///
/// # Errors
///
/// A message when there is no such thing.
pub fn explain(subject: &OsStr) -> Result<String, String> {
    let path = Path::new(subject);
    match subject.to_str() {
        Some(subject) if !path.exists() => explain_word(subject),
        _ => match Death::open(path) {
            Ok(death) => Ok(death.to_string()),
            Err(why) => Err(format!("{}: {why}", path.display())),
        },
    }
}

fn explain_word(subject: &str) -> Result<String, String> {
    for (status, text) in STATUSES {
        if subject == status.to_string() {
            return Ok(format!("exit status {status}: {text}\n"));
        }
    }
    let code: Code = subject.parse()?;
    let Explanation {
        title,
        cause,
        check,
        fix,
    } = code.explanation();
    Ok(format!(
        "{code}: {title}\n\ncause: {cause}\n\ncheck: {check}\n\n  fix: {fix}\n"
    ))
}

/// One line for each code and each exit status.
pub fn list() -> String {
    let codes = Code::ALL
        .iter()
        .map(|code| format!("{code}  {}\n", code.explanation().title));
    let statuses = STATUSES.map(|(status, text)| {
        let first = text.split(['.', ',']).next().unwrap_or_default();
        format!("{status:<6}  {first}\n")
    });
    codes.chain(statuses).collect()
}

/// Everything, in Markdown.
pub fn all() -> String {
    codes::reference()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_statuses() {
        let explain = |subject: &str| super::explain(subject.as_ref());
        let text = explain("LG0010").unwrap();
        assert!(
            text.starts_with("LG0010: ") && text.contains("\n  fix: Build it with CONFIG_XEN_PV"),
            "{text}"
        );
        assert!(explain("255").unwrap().contains("panicked"));
        assert!(explain("LG4711").unwrap_err().contains("lg explain"));
        let own = explain(file!().trim_start_matches("launcher/")).unwrap_err();
        assert!(own.contains("no account"), "{own}");
        assert_eq!(list().lines().count(), Code::ALL.len() + STATUSES.len());
    }
}
