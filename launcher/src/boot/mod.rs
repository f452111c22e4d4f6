// SPDX-License-Identifier: GPL-2.0
//! Puts a Guest into RAM: the kernel, its initrd, and what it finds at its first instruction. By lg's
//! own contract that is [`lguest`], for a kernel of Xen's [`xen`].

pub mod cpio;
pub mod lguest;
pub mod page_tables;
mod ram;
pub mod xen;

use std::ffi::CStr;

use crate::boot::ram::kernel_end;
pub use crate::boot::ram::{Entry, LoadError};
use crate::image::{Abi, Image};
use crate::memory::{self, Memory};
use crate::report::Error;

/// The places of a Guest in RAM: checked, and nothing is written yet.
pub enum Layout {
    /// By lg's own contract.
    Lguest(lguest::Layout),
    /// By Xen's.
    Xen(Box<xen::Layout>),
}

impl Layout {
    /// The place of `image` and an initrd of so many bytes (0: none) in `ram` bytes of RAM, for `vcpus` vCPUs.
    ///
    /// # Errors
    ///
    /// There is none; or, for a kernel of Xen's, there is no shim.
    pub fn of(image: &Image, initrd_size: usize, ram: u64, vcpus: u32) -> Result<Self, Error> {
        Ok(match &image.abi {
            Abi::Lguest => Self::Lguest(lguest::Layout::of(image, initrd_size, ram)?),
            Abi::Xen(notes) => {
                let shim = xen::shim()?;
                let layout = xen::Layout::of(image, notes, shim, initrd_size, (ram, vcpus))?;
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
    match image.abi {
        Abi::Lguest => lguest::initrd_limit(image),
        Abi::Xen(_) => lguest_abi::LGUEST_MAX_GPA.saturating_sub(kernel_end(image)),
    }
}
