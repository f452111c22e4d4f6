// SPDX-License-Identifier: GPL-2.0
//! What both ways to put a Guest into RAM have in common: what is stored, what is found, what does not fit.

use vm_memory::{Bytes, GuestAddress};

use crate::image::Image;
use crate::memory::{Memory, PAGE};
use crate::report::codes::Code;
use crate::report::Explain;

/// The state in which the first vCPU starts.
#[derive(Debug)]
pub struct Entry {
    /// GPA of the root page table.
    pub cr3: u64,
    /// GVA of the first instruction.
    pub rip: u64,
    /// GPA of what the Guest is told: the `boot_params`, or the shim's `Handover`.
    pub rsi: u64,
}

/// The reasons why a Guest does not fit into RAM.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum LoadError {
    #[error("{} MiB of memory are too little", given >> 20)]
    TooLittleMemory { given: u64, needed: u64 },
    #[error("{} MiB of memory are too much", given >> 20)]
    TooMuchMemory { given: u64, why: &'static str },
    #[error("{}", Code::InitrdTooLarge.title())]
    InitrdTooLarge { size: u64, limit: u64 },
}

impl Explain for LoadError {
    fn code(&self) -> Code {
        match self {
            Self::TooLittleMemory { .. } => Code::TooLittleMemory,
            Self::TooMuchMemory { .. } => Code::TooMuchMemory,
            Self::InitrdTooLarge { .. } => Code::InitrdTooLarge,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::TooLittleMemory { needed, .. } => {
                let needed = needed.div_ceil(1 << 20);
                format!("kernel and initrd alone fill {needed} MiB")
            }
            Self::TooMuchMemory { why, .. } => (*why).into(),
            Self::InitrdTooLarge { size, limit } => format!(
                "it has {} MiB, and between the kernel and the end of what it can reach are {} MiB",
                size.div_ceil(1 << 20),
                limit >> 20
            ),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::TooLittleMemory { needed, .. } => {
                // The kernel wants some for itself.
                let enough = needed.div_ceil(1 << 20) + 64;
                format!("give it more, such as -m {enough}M")
            }
            Self::TooMuchMemory { .. } => "give it less with -m".into(),
            Self::InitrdTooLarge { .. } => "make it smaller".into(),
        }
    }
}

/// The GPA behind the kernel.
pub(super) fn kernel_end(image: &Image) -> u64 {
    let ends = image
        .segments
        .iter()
        .map(|segment| segment.gpa + segment.size);
    ends.max().unwrap_or(0).next_multiple_of(PAGE)
}

/// Stores `bytes` at `gpa`, where memory was checked to be.
pub(super) fn write(memory: &Memory, gpa: u64, bytes: &[u8]) {
    memory
        .write_slice(bytes, GuestAddress(gpa))
        .expect("checked to be RAM");
}
