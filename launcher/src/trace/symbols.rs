// SPDX-License-Identifier: GPL-2.0
//! Names for addresses: the symbols of a vmlinux. Like a trace, the file may be anybody's: what makes no sense has no
//! names.

use std::fs;
use std::path::Path;

use object::elf::{FileHeader64, Sym64, SHT_SYMTAB, STT_FUNC, STT_NOTYPE};
use object::read::elf::{FileHeader, Sym};
use object::LittleEndian;

use crate::image::build_id::build_id;
use crate::report::system::cannot_read;
use crate::report::Error;

/// The names of a kernel's functions.
#[derive(Debug, Default)]
pub struct Symbols {
    /// In the order of their addresses: where one begins, and its name.
    functions: Vec<(u64, String)>,
    /// That of the file.
    pub build_id: Vec<u8>,
}

impl Symbols {
    /// Those of the file at `path`.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = fs::read(path).map_err(cannot_read(path))?;
        Ok(Self::parse(&file))
    }

    /// Those in the bytes of an ELF file.
    pub fn parse(elf: &[u8]) -> Self {
        Self {
            functions: functions(elf).unwrap_or_default(),
            build_id: build_id(elf).unwrap_or_default(),
        }
    }

    /// Is there no name at all?
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    /// The function around `address`, and how far in that is.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.functions.partition_point(|(at, _)| *at <= address);
        let (at, name) = self.functions.get(after.checked_sub(1)?)?;
        // Behind the last one of all there is nothing that is known of.
        (after < self.functions.len()).then_some((name, address - at))
    }

    /// An address for people: `name+0x12`, or the number.
    pub fn name(&self, address: u64) -> String {
        match self.find(address) {
            Some((name, 0)) => name.into(),
            Some((name, offset)) => format!("{name}+{offset:#x}"),
            None => format!("{address:#x}"),
        }
    }
}

/// The address of a name, whatever it names, in the bytes of an ELF file.
pub fn address_of(elf: &[u8], name: &str) -> Option<u64> {
    let header = FileHeader64::<LittleEndian>::parse(elf).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, elf).ok()?;
    let table = sections.symbols(endian, elf, SHT_SYMTAB).ok()?;
    let named = |symbol: &&Sym64<LittleEndian>| {
        !symbol.is_undefined(endian)
            && symbol
                .name(endian, table.strings())
                .is_ok_and(|found| found == name.as_bytes())
    };
    table
        .iter()
        .find(named)
        .map(|symbol| symbol.st_value(endian))
}

/// The functions, and what the assembler has labels for, in the order of their addresses.
fn functions(elf: &[u8]) -> object::Result<Vec<(u64, String)>> {
    let header = FileHeader64::<LittleEndian>::parse(elf)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, elf)?;
    let table = sections.symbols(endian, elf, SHT_SYMTAB)?;
    let mut functions = Vec::new();
    for symbol in table.iter() {
        let is_function = symbol.st_type() == STT_FUNC;
        // Labels are places in a function, if they are in one.
        let is_label = symbol.st_type() == STT_NOTYPE && symbol.st_value(endian) >> 63 != 0;
        if symbol.is_undefined(endian) || symbol.is_absolute(endian) || !(is_function || is_label) {
            continue;
        }
        let name = String::from_utf8_lossy(symbol.name(endian, table.strings())?);
        if !name.is_empty() && !name.chars().any(char::is_control) {
            let name = demangled(&name).unwrap_or_else(|| name.into_owned());
            functions.push((symbol.st_value(endian), !is_function, name));
        }
    }
    // Of several names for one address, a function's counts.
    functions.sort();
    functions.dedup_by_key(|(at, ..)| *at);
    let functions = functions.into_iter().map(|(at, _, name)| (at, name));
    Ok(functions.collect())
}

/// The path that rustc has made such a name of, as bare Guests have them: `_ZN3foo3bar17h0123456789abcdefE` is `foo::bar`.
/// `None` for any other name.
fn demangled(name: &str) -> Option<String> {
    let mut rest = name.strip_prefix("_ZN")?.strip_suffix('E')?;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let length = rest[..digits].parse().ok()?;
        let (part, behind) = rest[digits..].split_at_checked(length)?;
        parts.push(part);
        rest = behind;
    }
    // The last one is a hash.
    let (hash, path) = parts.split_last()?;
    (!path.is_empty() && hash.len() == 17 && hash.starts_with('h')).then(|| path.join("::"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn symbols() -> Symbols {
        Symbols {
            functions: vec![
                (0x1000, "first".into()),
                (0x1100, "second".into()),
                (0x2000, "end".into()),
            ],
            build_id: Vec::new(),
        }
    }

    #[test]
    fn addresses_have_names() {
        let symbols = symbols();
        assert_eq!(symbols.name(0xfff), "0xfff");
        assert_eq!(symbols.name(0x1000), "first");
        assert_eq!(symbols.name(0x10ff), "first+0xff");
        assert_eq!(symbols.name(0x1fff), "second+0xeff");
        assert_eq!(symbols.name(0x2000), "0x2000");
        assert_eq!(Symbols::default().name(1), "0x1");
    }

    #[test]
    fn names_of_rust_are_paths() {
        let mangled = "_ZN11lguest_call9hypercall9write_cr317h4199487d070d7d6cE";
        assert_eq!(
            demangled(mangled).as_deref(),
            Some("lguest_call::hypercall::write_cr3")
        );
        for other in [
            "main",
            "_ZN",
            "_ZNE",
            "_ZN17h4199487d070d7d6cE",
            "_ZN3fooE",
            "_ZN9fooE",
            "_ZN99999999999999999999999fooE",
            "_ZN1\u{e9}17h4199487d070d7d6cE",
        ] {
            assert_eq!(demangled(other), None, "{other}");
        }
    }

    #[test]
    fn the_symbols_of_this_program() {
        // Position independent, but a symbol table is a symbol table.
        let own = fs::read("/proc/self/exe").unwrap();
        let symbols = Symbols::parse(&own);
        let main = symbols.functions.iter().find(|(_, name)| name == "main");
        let (at, _) = main.expect("it has a main");
        assert_eq!(symbols.name(*at + 1), "main+0x1");
        assert_eq!(address_of(&own, "main"), Some(*at));
        assert_eq!(address_of(&own, "no such name"), None);
    }

    proptest! {
        #[test]
        fn any_file_is_read(bytes: Vec<u8>) {
            Symbols::parse(&bytes);
            address_of(&bytes, "main");
        }
    }
}
