// SPDX-License-Identifier: GPL-2.0
//! What is fuzzed: everything that takes bytes from a Guest or from a file.
//!
//! A target is a function of any bytes. It must not panic, and must come to an end. The programs of
//! `fuzz/fuzz_targets` feed it with what libFuzzer thinks of; a test here feeds it with what is in
//! `fuzz/corpus`, so that whatever was found once stays fixed.

use std::sync::Arc;

use lguest_abi::lguest_regs;

use crate::image::Image;
use crate::insn::{self, Target};
use crate::virtio::bytes::Input;
use crate::virtio::console::Console;
use crate::virtio::fuzz::drive;
use crate::virtio::ports::{Ports, Stream};
use crate::virtio::rng::Rng;

/// The name of a target's program and corpus, and what takes the bytes.
type Row = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Row] = &[
    ("console", console),
    ("image", image),
    ("insn", insn),
    ("ports", ports),
    ("rng", rng),
];

/// A driver of the console, while somebody types.
pub fn console(bytes: &[u8]) {
    let input = Arc::<Input>::default();
    let device = Console::new(input.clone(), Some(Arc::default()), Box::new(|_| {}));
    drive(device, bytes, |choices| {
        let count = choices.byte().into();
        input.offer(choices.bytes(count));
    });
}

/// A driver of ports for all three streams, of which the first has input and then its end.
pub fn ports(bytes: &[u8]) {
    let input = Arc::<Input>::default();
    let device = Ports::new(vec![
        ("in", Stream::Input(input.clone())),
        ("out", Stream::Output(Box::new(|_| {}))),
        ("err", Stream::Output(Box::new(|_| {}))),
    ]);
    drive(device, bytes, |choices| match choices.byte() {
        0 => input.end(),
        count => drop(input.offer(choices.bytes(count.into()))),
    });
}

/// A driver of the entropy device.
pub fn rng(bytes: &[u8]) {
    drive(Rng, bytes, |_| {});
}

/// An instruction that reaches for a device: the registers' values, then its bytes.
pub fn insn(bytes: &[u8]) {
    struct Device(u64);

    impl Target for Device {
        fn load(&mut self, data: &mut [u8]) {
            data.copy_from_slice(&self.0.to_le_bytes()[..data.len()]);
        }

        fn store(&mut self, data: &[u8]) {
            assert!(matches!(data.len(), 1 | 2 | 4 | 8));
        }
    }

    let Some((value, bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let value = u64::from_le_bytes(*value);
    let mut regs = lguest_regs {
        rax: value,
        rcx: value,
        rdi: value,
        rip: value,
        rflags: value,
        ..Default::default()
    };
    let before = format!("{regs:?}");
    if insn::emulate(bytes, &mut regs, &mut Device(value)).is_err() {
        assert_eq!(format!("{regs:?}"), before, "a refused one changes nothing");
    }
}

/// A kernel's file: an ELF executable or a bzImage, packed in any way.
pub fn image(bytes: &[u8]) {
    if let Ok(image) = Image::parse(bytes.to_vec()) {
        for segment in &image.segments {
            assert!(image.bytes(segment).len() as u64 <= segment.size);
            assert!(segment.gpa + segment.size <= lguest_abi::LGUEST_MAX_GPA);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

    #[test]
    fn every_corpus_runs_through_its_target() {
        for (name, target) in TARGETS {
            let files = fs::read_dir(format!("{CORPUS}/{name}")).expect(name);
            let mut count = 0;
            for file in files {
                target(&fs::read(file.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count != 0, "{name} has no corpus");
        }
    }

    #[test]
    fn every_corpus_has_a_target() {
        for directory in fs::read_dir(CORPUS).unwrap() {
            let name = directory.unwrap().file_name();
            let known = TARGETS.iter().any(|(target, _)| name == **target);
            assert!(known, "{name:?}");
        }
    }
}
