// SPDX-License-Identifier: GPL-2.0
//! The other end of the Guest's cable.
//!
//! [`super::passt`] speaks for the Guest with the user's own sockets and needs no rights;
//! [`super::tap`] is an interface of the Host's. The device between them and the Guest is [`super`].

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::report::codes::Code;
use crate::report::Explain;

/// `struct virtio_net_hdr_v1`, the header before each frame (section 5.1.6 of the specification).
pub type Header = [u8; HEADER_SIZE];
/// Size of a [`Header`], in bytes.
pub const HEADER_SIZE: usize = 12;
/// The header of a frame that is nothing but a frame. (`num_buffers` is the device's to fill in.)
pub const PLAIN: Header = [0; HEADER_SIZE];
/// The shortest frame: two addresses and a type. Lengths count no header and no check sequence.
pub const FRAME_MIN: usize = 14;
/// The longest frame: with segmentation left to the receiver, 64 KiB behind [`FRAME_MIN`].
pub const FRAME_MAX: usize = FRAME_MIN + (1 << 16);

/// The other end of the Guest's cable. No function waits.
pub trait Peer: Send {
    /// The largest packet that a frame carries, in bytes.
    fn mtu(&self) -> u16;

    /// Those of the device's features for offloads that the peer takes part in.
    fn offloads(&self) -> u64 {
        0
    }

    /// A driver has agreed on these of [`Peer::offloads`].
    fn agree(&mut self, _offloads: u64) -> io::Result<()> {
        Ok(())
    }

    /// Becomes readable when there may be a frame, or room for one that has waited.
    fn readiness(&self) -> RawFd;

    /// Sends a packet, a header and a frame of [`FRAME_MIN`] to [`FRAME_MAX`] bytes. `Ok(false)`:
    /// there is no room now for all of it, and the same packet must be sent again when there is.
    /// The bytes of the header may be overwritten.
    ///
    /// # Errors
    ///
    /// The cable is cut for good.
    fn send(&mut self, packet: &mut [u8]) -> io::Result<bool>;

    /// The next frame, if there is one; the same until [`Peer::received`] is called.
    ///
    /// # Errors
    ///
    /// The cable is cut for good.
    fn receive(&mut self) -> io::Result<Option<(Header, &[u8])>>;

    /// The frame that [`Peer::receive`] has returned is done with.
    fn received(&mut self);
}

/// What tells a device's thread that a descriptor is readable and, only when asked for, writable.
pub(super) struct Readiness {
    pub(super) epoll: Epoll,
    fd: RawFd,
    output: bool,
}

impl Readiness {
    /// Watches `fd`, which must stay open.
    pub(super) fn new(fd: RawFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        Ok(Self {
            epoll,
            fd,
            output: false,
        })
    }

    /// Shall it also tell when the descriptor is writable? Returns whether that is a change: what
    /// became writable before the change is not told of.
    pub(super) fn watch_output(&mut self, output: bool) -> io::Result<bool> {
        if self.output == output {
            return Ok(false);
        }
        let events = match output {
            true => EventSet::IN | EventSet::OUT,
            false => EventSet::IN,
        };
        let event = EpollEvent::new(events, 0);
        self.epoll.ctl(ControlOperation::Modify, self.fd, event)?;
        self.output = output;
        Ok(true)
    }

    /// Calls `write` until it is through (true) or there is no room (false), and then tells when
    /// there is. `write` returns whether it is through.
    pub(super) fn write(
        &mut self,
        mut write: impl FnMut() -> io::Result<bool>,
    ) -> io::Result<bool> {
        loop {
            match write() {
                Ok(true) => {
                    self.watch_output(false)?;
                    return Ok(true);
                }
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // There may be room again since.
                    if !self.watch_output(true)? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// An Ethernet address of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Reads six bytes in hexadecimal, with colons between.
    pub fn parse(text: &str) -> Result<Self, String> {
        let byte = |text: &str| {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(text, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes
            .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
            .ok_or_else(|| {
                format!("{text:?} is no Ethernet address; an example is 02:00:00:12:34:56")
            })?;
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(format!("{text} is no address of a single interface"));
        }
        Ok(Self(bytes))
    }

    /// An address that nobody else has, most likely: from the range for who has no range.
    pub(super) fn by_chance() -> io::Result<Self> {
        let mut bytes = [2; 6];
        File::open("/dev/urandom")?.read_exact(&mut bytes[1..])?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The reasons why there is no network. `Display` says what went wrong.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    #[error("{}", Code::NoPasst.title())]
    NoPasst,
    #[error("{}", Code::Passt.title())]
    Passt(String),
    #[error("there is no network interface {0}")]
    NoInterface(String),
    #[error("cannot open /dev/net/tun")]
    OpenTun(#[source] io::Error),
    #[error("cannot use the network interface {name}")]
    Tap { name: String, source: io::Error },
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::NoPasst => Code::NoPasst,
            Self::Passt(_) => Code::Passt,
            Self::NoInterface(_) => Code::NoInterface,
            Self::OpenTun(_) => Code::OpenTun,
            Self::Tap { .. } => Code::Tap,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::NoPasst => "--net user needs it, and no directory in PATH has it".into(),
            Self::Passt(said) => said.clone(),
            Self::NoInterface(_) => "--net tap=... uses one that exists, and makes none".into(),
            Self::OpenTun(source) if source.kind() == io::ErrorKind::NotFound => {
                "the module tun is not loaded".into()
            }
            Self::Tap { source, .. } => match source.raw_os_error() {
                Some(nix::libc::EBUSY) => "another program is using it".into(),
                Some(nix::libc::EPERM) => "it belongs to another user".into(),
                Some(nix::libc::EINVAL) => "it is no tap interface".into(),
                _ => source.to_string(),
            },
            Self::OpenTun(source) => source.to_string(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoPasst | Self::OpenTun(_) => self.code().fix().to_string(),
            Self::Passt(_) => "forward other ports, if it is about one; passt(1) knows more".into(),
            Self::NoInterface(name) | Self::Tap { name, .. } => format!(
                "make one of your own: sudo ip tuntap add {name} mode tap user $USER && \
                 sudo ip link set {name} up"
            ),
        }
    }
}
