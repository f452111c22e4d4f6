// SPDX-License-Identifier: GPL-2.0
//! `--report-since FILE`: the data of an earlier report, out of its page, which anybody may have made.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::boot_report::data::{Data, VERSION};
use crate::boot_report::page;
use crate::report::codes::Code;
use crate::report::system::cannot_read;
use crate::report::{Error, Explain};

/// No report is larger.
const SIZE_MAX: u64 = 16 << 20;

/// The reasons why there is nothing to compare with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", Code::Report.title())]
pub struct NoReport {
    why: String,
}

impl NoReport {
    /// Because of this.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

impl Explain for NoReport {
    fn code(&self) -> Code {
        Code::Report
    }

    fn why(&self) -> String {
        self.why.clone()
    }
}

/// The data of the page at `path`.
///
/// # Errors
///
/// It cannot be read, or is no report.
pub fn read(path: &Path) -> Result<Data, Error> {
    let file = File::open(path).map_err(cannot_read(path))?;
    let mut bytes = Vec::new();
    let read = file.take(SIZE_MAX).read_to_end(&mut bytes);
    read.map_err(cannot_read(path))?;
    let found = parse(&bytes);
    found.map_err(|why| NoReport::new(format!("{}: {why}", path.display())).into())
}

/// The data in the bytes of a page; what is wrong with it otherwise.
fn parse(page: &[u8]) -> Result<Data, String> {
    let none = || "it holds no data of one".to_string();
    let text = std::str::from_utf8(page).map_err(|_| none())?;
    let (_, data) = text.split_once(page::DATA_BEGINS).ok_or_else(none)?;
    let (data, _) = data.split_once(page::DATA_ENDS).ok_or_else(none)?;
    let version: serde_json::Value = serde_json::from_str(data).map_err(|_| none())?;
    if version["version"] != VERSION {
        let theirs = &version["version"];
        return Err(format!(
            "it is of version {theirs}, and this lg reads version {VERSION}"
        ));
    }
    serde_json::from_value(version).map_err(|error| format!("its data makes no sense: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::boot_report::page::tests::data;

    #[test]
    fn a_page_is_the_file_of_its_data() {
        let data = data();
        let page = page::render(&data, None);
        assert_eq!(parse(page.as_bytes()).unwrap(), data);
        // With another one in it, it is still its own.
        let mut newer = data.clone();
        newer.run.status = 7;
        let page = page::render(&newer, Some(&data));
        assert_eq!(parse(page.as_bytes()).unwrap(), newer);
    }

    #[test]
    fn other_files_are_refused() {
        let page = page::render(&data(), None);
        for bad in ["", "<html>", "\u{fffd}", &page[..page.len() / 2]] {
            let why = parse(bad.as_bytes()).unwrap_err();
            assert!(why.contains("no data"), "{bad}: {why}");
        }
        let newer = page.replace("{\"version\":1,", "{\"version\":2,");
        assert!(parse(newer.as_bytes()).unwrap_err().contains("version 2"));
        let other = page.replace("\"began\":", "\"begin\":");
        assert!(parse(other.as_bytes()).unwrap_err().contains("no sense"));
        let error = read(Path::new("/no/such")).unwrap_err();
        assert_eq!(error.code(), Code::Read);
    }

    proptest! {
        #[test]
        fn any_data_is_shown_or_refused(at in 0.0..1.0, text in "[0-9e\\-{}\\[\\]\",a-z]{0,8}") {
            let data = data();
            let page = page::render(&data, None);
            let (head, rest) = page.split_once(page::DATA_BEGINS).unwrap();
            let (json, tail) = rest.split_once(page::DATA_ENDS).unwrap();
            let mut at = (json.len() as f64 * at) as usize;
            while !json.is_char_boundary(at) {
                at -= 1;
            }
            let changed = [
                head, page::DATA_BEGINS, &json[..at], &text, &json[at..], page::DATA_ENDS, tail,
            ];
            if let Ok(earlier) = parse(changed.concat().as_bytes()) {
                page::render(&data, Some(&earlier));
            }
        }
    }
}
