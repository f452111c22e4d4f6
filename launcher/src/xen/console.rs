// SPDX-License-Identifier: GPL-2.0
//! The console, hvc0: a page with a ring of what is typed, and one of what the kernel prints.
//!
//! Linux spins until its output is out, with interrupts off: so the vCPU that calls the console's port serves it, at
//! once, as the output of virtio's console. It comes 16 bytes at a time, and goes out by lines, for it is a log.

use std::mem::offset_of;
use std::sync::Arc;

use xen_abi::rings::Console as Page;

use crate::devices::bytes::{Input, Output};
use crate::memory::Memory;
use crate::xen::ring::{Broken, Ring};

/// The console.
pub struct Console {
    memory: Memory,
    input: Arc<Input>,
    output: Output,
    /// The beginning of a line.
    line: Vec<u8>,
    typed: Ring,
    printed: Ring,
}

/// A longer line is shown in parts.
const LINE_MAX: usize = 1024;

impl Console {
    /// The console whose page is at GPA `page` of `memory`, at which `input` is typed, and which shows `output`.
    pub fn new(memory: Memory, page: u64, input: Arc<Input>, output: Output) -> Self {
        let ring = |data, size, taken, added| Ring {
            data: page + data as u64,
            size,
            taken: page + taken as u64,
            added: page + added as u64,
        };
        let typed = ring(
            offset_of!(Page, input),
            1024,
            offset_of!(Page, input_taken),
            offset_of!(Page, input_added),
        );
        let printed = ring(
            offset_of!(Page, output),
            2048,
            offset_of!(Page, output_taken),
            offset_of!(Page, output_added),
        );
        Self {
            memory,
            input,
            output,
            line: Vec::new(),
            typed,
            printed,
        }
    }

    fn show(&mut self, byte: u8) {
        // A terminal's "\r\n" is "\n" in a log.
        if byte != b'\r' {
            self.line.push(byte);
        }
        if byte == b'\n' || self.line.len() >= LINE_MAX {
            self.finish();
        }
    }

    /// Shows what has been printed of a line.
    pub fn finish(&mut self) {
        if !self.line.is_empty() {
            (self.output)(&self.line);
            self.line.clear();
        }
    }

    /// Shows what is printed, and types what waits. Tells whether there was something to type, of which the kernel
    /// is to hear: for the room in its own ring it does not wait.
    ///
    /// # Errors
    ///
    /// The kernel has broken a ring.
    pub fn serve(&mut self) -> Result<bool, Broken> {
        for byte in self.printed.take(&self.memory)? {
            self.show(byte);
        }
        let room = self.typed.room(&self.memory)?;
        let bytes = self.input.take(room);
        self.typed.add(&self.memory, &bytes)?;
        Ok(!bytes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const PAGE: u64 = 0x5000;

    #[test]
    fn both_ways() {
        let memory = crate::memory::create(1 << 20).unwrap();
        let input = Arc::<Input>::default();
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let shows = shown.clone();
        let output = Box::new(move |text: &[u8]| shows.lock().unwrap().extend(text));
        let mut console = Console::new(memory.clone(), PAGE, input.clone(), output);
        memory
            .write_slice(b"hello\r\n", GuestAddress(PAGE + 1024))
            .unwrap();
        memory.write_obj(7u32, GuestAddress(PAGE + 3084)).unwrap();
        assert!(!console.serve().unwrap(), "nothing is typed");
        assert_eq!(*shown.lock().unwrap(), b"hello\n");
        assert_eq!(
            memory.read_obj::<u32>(GuestAddress(PAGE + 3080)).unwrap(),
            7
        );
        input.offer(&[b'x'; 1500]);
        assert!(console.serve().unwrap());
        assert!(!console.serve().unwrap(), "there is no room");
        assert_eq!(
            memory.read_obj::<u32>(GuestAddress(PAGE + 3076)).unwrap(),
            1024
        );
        memory
            .write_obj(1000u32, GuestAddress(PAGE + 3072))
            .unwrap();
        assert!(console.serve().unwrap());
        assert_eq!(
            memory.read_obj::<u32>(GuestAddress(PAGE + 3076)).unwrap(),
            1500
        );
        memory
            .write_obj(u32::MAX, GuestAddress(PAGE + 3080))
            .unwrap();
        assert!(console.serve().is_ok(), "seven bytes");
        memory
            .write_obj(3000u32, GuestAddress(PAGE + 3080))
            .unwrap();
        console.serve().unwrap_err();
    }
}
