// SPDX-License-Identifier: GPL-2.0
//! `--net tap=IF`: an interface of the Host's whose cable ends at us.
//!
//! Each read and each write is one frame behind a header in virtio's own format, so offloads go
//! through as they are: the Host's kernel finishes checksums, cuts and joins segments as it does for
//! any interface, and it checks what it is given.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_short, c_uint};
use virtio_bindings::virtio_net::*;

use super::peer::{Error, Header, Peer, Readiness, FRAME_MAX, HEADER_SIZE};

/// Offloads of what the Guest sends; the kernel always takes them.
const TO_HOST: u64 = (1 << VIRTIO_NET_F_CSUM)
    | (1 << VIRTIO_NET_F_HOST_TSO4)
    | (1 << VIRTIO_NET_F_HOST_TSO6)
    | (1 << VIRTIO_NET_F_HOST_ECN);
/// Offloads of what the Guest receives, and what the kernel calls them.
const TO_GUEST: [(u32, c_uint); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
];

/// Calls of a tap's, which have no safe wrapper elsewhere.
#[allow(unsafe_code)]
mod ioctl {
    use super::{c_int, c_uint, libc, RawFd};

    nix::ioctl_read_bad!(siocgifmtu, libc::SIOCGIFMTU, libc::ifreq);
    nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_ptr_bad!(tunsetvnethdrsz, libc::TUNSETVNETHDRSZ, c_int);
    nix::ioctl_write_int_bad!(tunsetoffload, libc::TUNSETOFFLOAD);

    /// Fills in the MTU of the interface that `request` names. Any socket will do.
    pub(super) fn mtu(socket: RawFd, request: &mut libc::ifreq) -> nix::Result<c_int> {
        // SAFETY: reads and writes a whole ifreq, and leaves an int in the union.
        unsafe {
            siocgifmtu(socket, request)?;
            Ok(request.ifr_ifru.ifru_mtu)
        }
    }

    /// Makes `fd`, from /dev/net/tun, the end of the interface that `request` names.
    pub(super) fn attach(fd: RawFd, request: &libc::ifreq) -> nix::Result<()> {
        // SAFETY: reads a whole ifreq.
        unsafe { tunsetiff(fd, request) }.map(drop)
    }

    /// The size of the headers that are read and written.
    pub(super) fn set_header_size(fd: RawFd, size: c_int) -> nix::Result<()> {
        // SAFETY: reads an int.
        unsafe { tunsetvnethdrsz(fd, &size) }.map(drop)
    }

    /// The kinds of unfinished frames that may be read.
    pub(super) fn set_offload(fd: RawFd, offloads: c_uint) -> nix::Result<()> {
        // SAFETY: takes an integer.
        unsafe { tunsetoffload(fd, offloads as c_int) }.map(drop)
    }
}

/// An open tap.
pub struct Tap {
    file: File,
    readiness: Readiness,
    mtu: u16,
    /// The features that the driver has accepted.
    agreed: u64,
    /// The header and frame that was read last, and how long both are; 0: none.
    packet: Box<[u8]>,
    length: usize,
}

fn failed(name: &str, source: io::Error) -> Error {
    Error::Tap {
        name: name.into(),
        source,
    }
}

/// The MTU of the interface `name`, which must exist.
pub(super) fn mtu(name: &str) -> Result<c_int, Error> {
    let socket = UnixDatagram::unbound().map_err(|source| failed(name, source))?;
    match ioctl::mtu(socket.as_raw_fd(), &mut request(name)) {
        Err(Errno::ENODEV) => Err(Error::NoInterface(name.into())),
        result => result.map_err(|error| failed(name, error.into())),
    }
}

impl Tap {
    /// Opens the end of the interface `name`, which must exist: one that we made would go with us,
    /// and have no address.
    pub(super) fn open(name: &str) -> Result<Self, Error> {
        let mtu = mtu(name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(Error::OpenTun)?;
        Self::attach(file, name, mtu).map_err(|source| failed(name, source))
    }

    fn attach(file: File, name: &str, mtu: c_int) -> io::Result<Self> {
        let mut request = request(name);
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short;
        ioctl::attach(file.as_raw_fd(), &request)?;
        ioctl::set_header_size(file.as_raw_fd(), HEADER_SIZE as c_int)?;
        ioctl::set_offload(file.as_raw_fd(), 0)?;
        Ok(Self {
            readiness: Readiness::new(file.as_raw_fd())?,
            file,
            mtu: mtu.try_into().map_err(io::Error::other)?,
            agreed: 0,
            packet: vec![0; HEADER_SIZE + FRAME_MAX].into(),
            length: 0,
        })
    }
}

/// A request about the interface `name`, which fits.
fn request(name: &str) -> libc::ifreq {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    request
}

impl Peer for Tap {
    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn offloads(&self) -> u64 {
        TO_GUEST
            .iter()
            .fold(TO_HOST, |all, (feature, _)| all | (1 << feature))
    }

    fn agree(&mut self, offloads: u64) -> io::Result<()> {
        let flags = TO_GUEST
            .iter()
            .filter(|(feature, _)| offloads & (1 << feature) != 0)
            .fold(0, |all, (_, flag)| all | flag);
        ioctl::set_offload(self.file.as_raw_fd(), flags)?;
        self.agreed = offloads;
        // It may be in a form that another driver had agreed on.
        self.length = 0;
        Ok(())
    }

    fn readiness(&self) -> RawFd {
        self.readiness.epoll.as_raw_fd()
    }

    fn send(&mut self, packet: &mut [u8]) -> io::Result<bool> {
        if self.agreed & TO_HOST == 0 {
            packet[..HEADER_SIZE].fill(0);
        }
        let mut file = &self.file;
        let result = self.readiness.write(|| file.write(packet).map(|_| true));
        match result {
            // The interface is gone.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Err(error),
            // It is down, or out of memory, or finds the header wrong: the frame is lost, as on any
            // cable.
            Err(_) => Ok(true),
            Ok(sent) => Ok(sent),
        }
    }

    fn receive(&mut self) -> io::Result<Option<(Header, &[u8])>> {
        while self.length <= HEADER_SIZE {
            match self.file.read(&mut self.packet) {
                Ok(length) => self.length = length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let (header, frame) = self.packet[..self.length]
            .split_first_chunk()
            .ok_or(Errno::EIO)?;
        Ok(Some((*header, frame)))
    }

    fn received(&mut self) {
        self.length = 0;
    }
}
