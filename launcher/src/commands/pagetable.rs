// SPDX-License-Identifier: GPL-2.0
//! `lg pagetable`: an address in the page tables of a Guest that runs.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use crate::cli::PageTable as Options;
use crate::image::build_id::build_id;
use crate::machine::pagetable::PageTable;
use crate::machine::view::{Guest, Kernel};
use crate::queries::client::{self, NoAnswer};
use crate::queries::{self, Query};
use crate::report::codes::Code;
use crate::report::system::cannot_read;
use crate::report::{Error, Explain};
use crate::trace::symbols;

/// The reasons why an address is none.
#[derive(Debug, thiserror::Error)]
#[error("{}", Code::Address.title())]
struct NoAddress(String);

impl Explain for NoAddress {
    fn code(&self) -> Code {
        Code::Address
    }

    fn why(&self) -> String {
        self.0.clone()
    }
}

/// What there is to print.
///
/// # Errors
///
/// There is no Guest, or it is not said which; or the address is none.
pub fn run(options: &Options) -> Result<String, Error> {
    let pid = client::choose(options.guest)?;
    let gva = match options.address.strip_prefix("0x") {
        Some(_) => number(&options.address)?,
        None => match named(pid, options)? {
            Some(gva) => gva,
            None => number(&options.address)?,
        },
    };
    let answer = client::ask(pid, &Query::Walk { gva, vcpu: 0 })?;
    if options.json {
        return Ok(serde_json::to_string_pretty(&answer).expect("plain data") + "\n");
    }
    let table: PageTable = serde_json::from_value(answer)
        .map_err(|_| NoAnswer::Refused("it is another version of lg".into()))?;
    Ok(table.to_string())
}

fn number(text: &str) -> Result<u64, NoAddress> {
    let why = || {
        NoAddress(format!(
            "{text} is neither in hexadecimal nor a name of the kernel's"
        ))
    };
    queries::address(text).ok_or_else(why)
}

/// The address of a name in the kernel that runs.
fn named(pid: u32, options: &Options) -> Result<Option<u64>, Error> {
    let name = &options.address;
    let answer = client::ask(pid, &Query::Guest)?;
    let Ok(Guest { kernel, .. }) = serde_json::from_value(answer) else {
        return Ok(None);
    };
    if let Some(named) = &options.kernel {
        let elf = fs::read(named).map_err(cannot_read(named))?;
        if !is_of(&elf, &kernel) {
            let path = named.display();
            let why = format!("{path} is not the kernel that runs: its build ID is another");
            return Err(NoAddress(why).into());
        }
        return Ok(symbols::address_of(&elf, name));
    }
    Ok(in_file(&kernel.path, &kernel, name))
}

/// The address of a name in a file, if that is still what runs.
fn in_file(path: &Path, kernel: &Kernel, name: &str) -> Option<u64> {
    let elf = fs::read(path).ok()?;
    let elf = is_of(&elf, kernel).then_some(elf)?;
    symbols::address_of(&elf, name)
}

fn is_of(elf: &[u8], kernel: &Kernel) -> bool {
    Kernel::id(build_id(elf)) == kernel.build_id
}
