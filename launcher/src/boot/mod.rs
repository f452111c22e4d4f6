// SPDX-License-Identifier: GPL-2.0
//! Puts a Guest into RAM: the kernel, its initrd, and what it finds at its first instruction. By lg's
//! own contract that is [`lguest`], for a kernel of Xen's [`xen`].

pub mod cpio;
pub mod lguest;
pub mod page_tables;
pub mod xen;

use std::ffi::CStr;

use vm_memory::{Bytes, GuestAddress};

use crate::image::{Abi, Image};
use crate::memory::{self, Memory, PAGE};
use crate::report::codes::Code;
use crate::report::{Error, Explain};

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

/// The places of a Guest in RAM: checked, and nothing is written yet.
pub enum Layout {
    /// By lg's own contract.
    Lguest(lguest::Layout),
    /// By Xen's.
    Xen(Box<xen::Layout>),
}

impl Layout {
    /// The place of `image` and an initrd of so many bytes (0: none) in `ram` bytes of RAM.
    ///
    /// # Errors
    ///
    /// There is none; or, for a kernel of Xen's, there is no shim.
    pub fn of(image: &Image, initrd_size: usize, ram: u64) -> Result<Self, Error> {
        Ok(match &image.abi {
            Abi::Lguest => Self::Lguest(lguest::Layout::of(image, initrd_size, ram)?),
            Abi::Xen(notes) => {
                let shim = xen::shim()?;
                let layout = xen::Layout::of(image, notes, shim, initrd_size, ram)?;
                Self::Xen(Box::new(layout))
            }
        })
    }

    /// The parts of memory that it needs, as GPA and size.
    pub fn memory(&self) -> Vec<(u64, u64)> {
        match self {
            Self::Lguest(layout) => memory::layout(layout.ram()),
            Self::Xen(layout) => vec![(0, layout.all())],
        }
    }

    /// The places that those must know who serve a kernel of Xen's.
    pub fn places(&self) -> Option<xen::Places> {
        match self {
            Self::Lguest(_) => None,
            Self::Xen(layout) => Some(layout.places()),
        }
    }

    /// Loads what this is the layout for into `memory`, which is all 0 and has the parts that it needs.
    /// `command_line` has at most [`command_line_size`] bytes.
    pub fn load(
        &self,
        memory: &Memory,
        image: &Image,
        initrd: &[u8],
        command_line: &CStr,
    ) -> Entry {
        match self {
            Self::Lguest(layout) => layout.load(memory, image, initrd, command_line),
            Self::Xen(layout) => layout.load(memory, image, initrd, command_line),
        }
    }
}

/// So long is a command line that `image` takes, with the NUL at its end.
pub fn command_line_size(image: &Image) -> usize {
    match image.abi {
        Abi::Lguest => lguest::COMMAND_LINE_SIZE,
        Abi::Xen(_) => xen_abi::start_info::COMMAND_LINE_SIZE,
    }
}

/// The largest initrd, in bytes, for which there is a place beside `image`, in whatever RAM.
pub fn initrd_limit(image: &Image) -> u64 {
    let end = match image.abi {
        Abi::Lguest => lguest::INITRD_END,
        Abi::Xen(_) => lguest_abi::LGUEST_MAX_GPA,
    };
    end.saturating_sub(kernel_end(image))
}

/// The GPA behind the kernel.
fn kernel_end(image: &Image) -> u64 {
    let ends = image
        .segments
        .iter()
        .map(|segment| segment.gpa + segment.size);
    ends.max().unwrap_or(0).next_multiple_of(PAGE)
}

/// Stores `bytes` at `gpa`, where memory was checked to be.
fn write(memory: &Memory, gpa: u64, bytes: &[u8]) {
    memory
        .write_slice(bytes, GuestAddress(gpa))
        .expect("checked to be RAM");
}
