// SPDX-License-Identifier: GPL-2.0
//! The reasons why lg cannot run a file.

use std::path::PathBuf;

use lguest_abi::LGUEST_ABI_VERSION;

use crate::image::unpack::UnpackError;
use crate::report::codes::Code;
use crate::report::Explain;

/// The reasons why a file is not a kernel that lg can run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum ImageError {
    #[error("it is neither an ELF executable nor a bzImage")]
    NotAKernel,
    #[error("it is damaged: {0}")]
    Malformed(&'static str),
    #[error("it is not for x86-64 (ELF machine {0})")]
    ForeignMachine(u16),
    #[error("it is a 32-bit kernel")]
    Not64Bit,
    #[error("its boot protocol is {}.{:02}, which is too old", .0 >> 8, .0 & 0xff)]
    OldBzImage(u16),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("{}", no_note(*.linux, *.pvh))]
    NoNote {
        /// Is it Linux?
        linux: bool,
        /// Can it run under Xen with VT-x or SVM?
        pvh: bool,
    },
    #[error(
        "the kernel speaks version {0} of the guest ABI, this lg version {LGUEST_ABI_VERSION}"
    )]
    Abi(u32),
    #[error("the kernel needs features {0:#x}, which this lg does not know")]
    Features(u32),
}

fn no_note(linux: bool, pvh: bool) -> &'static str {
    match (linux, pvh) {
        (true, true) => {
            "the kernel was built with CONFIG_XEN_PV=n: of Xen's ways to run it has only the one that needs VT-x or SVM"
        }
        (true, false) => {
            "the kernel was built without CONFIG_XEN_PV, and has no lguest support (there is no ELF note \"Lguest\")"
        }
        (false, _) => "it has no lguest support (there is no ELF note \"Lguest\")",
    }
}

impl ImageError {
    fn code(&self) -> Code {
        match self {
            Self::NotAKernel => Code::NotAKernel,
            Self::Malformed(_) => Code::DamagedKernel,
            Self::ForeignMachine(_) => Code::ForeignKernel,
            Self::Not64Bit => Code::Kernel32Bit,
            Self::OldBzImage(_) => Code::OldBzImage,
            Self::Unpack(_) => Code::Unpack,
            Self::NoNote { .. } => Code::NoNote,
            Self::Abi(_) => Code::GuestAbi,
            Self::Features(_) => Code::GuestFeatures,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NotAKernel | Self::ForeignMachine(_) => Code::NotAKernel.fix().to_string(),
            Self::Not64Bit => Code::Kernel32Bit.fix().to_string(),
            Self::Unpack(error) if !error.is_damage() => Code::OldBzImage.fix().to_string(),
            Self::OldBzImage(_) => Code::OldBzImage.fix().to_string(),
            Self::Malformed(_) | Self::Unpack(_) => Code::DamagedKernel.fix().to_string(),
            Self::NoNote { linux: true, .. } => Code::NoNote.fix().to_string(),
            Self::NoNote { linux: false, .. } => {
                "build it on the lguest-guest crate, which adds the note".into()
            }
            Self::Abi(theirs) if *theirs < LGUEST_ABI_VERSION => {
                "build the guest again, with the include/uapi/linux/lguest.h of this lg".into()
            }
            Self::Abi(_) | Self::Features(_) => Code::GuestFeatures.fix().to_string(),
        }
    }
}

/// A file that lg cannot run.
#[derive(Debug, thiserror::Error)]
#[error("lg cannot run {}", path.display())]
pub struct Refused {
    /// The file.
    pub path: PathBuf,
    /// The error in it.
    pub source: ImageError,
}

impl Explain for Refused {
    fn code(&self) -> Code {
        self.source.code()
    }

    fn why(&self) -> String {
        self.source.to_string()
    }

    fn fix(&self) -> String {
        self.source.fix()
    }
}
