// SPDX-License-Identifier: GPL-2.0
//! The backend of xen-netfront: a network for a kernel that has no driver for the PCI bus.
//!
//! The kernel grants two pages, each a ring: of pieces of frames for the peer, and of empty pages for frames that come from
//! there. A thread of the interface's own moves them, with the [`Cable`] that a device of virtio's has. As there, nothing is
//! thrown away for want of room: without pages, frames wait with the peer; when the peer is full, the kernel's wait
//! in their ring. A frame is copied once each way, and so is a request, which is then checked.
//!
//! Linux leaves the checksums of TCP and UDP by IPv4 to a backend, whatever that says. They are filled in here, for passt and for
//! a tap. Segmentation is not offered.
//!
//! Source: io/netif.h of Xen.

mod checksum;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use crate::devices::net::cable::Cable;
use crate::devices::net::peer::{Mac, FRAME_MIN, HEADER_SIZE};
use crate::memory::grants::{Grants, Use};
use crate::memory::{Memory, PAGE};
use crate::report::messages::say;
use crate::xen::events::Events;
use crate::xen::link::{Backend, Kernel, Link, Served, Work};
use crate::xen::ring::Broken;
use crate::xen::slots::Slots;
use crate::xen::store::Store;

/// Size of a piece of a frame for the peer, as a request; the response is shorter.
const TRANSMIT: usize = 12;
/// Size of an empty page, as a request, and of the response.
const RECEIVE: usize = 8;

/// Flags of a piece: the frame's checksum is to be filled in, the next one belongs to the same frame, the next one is none but
/// tells more of this.
const CSUM_BLANK: u16 = 1 << 0;
const MORE_DATA: u16 = 1 << 2;
const EXTRA_INFO: u16 = 1 << 3;
/// Flag of a page that has come: the frame goes on in the next one.
const GOES_ON: u16 = 1 << 2;

/// The ends of a request.
const DONE: i16 = 0;
const FAILED: i16 = -1;

/// The most pieces of a frame: XEN_NETIF_NR_SLOTS_MIN, which each backend must take and no frontend exceeds unasked.
const PIECES_MAX: usize = 18;
/// So many frames in one direction, then it is the turn of the other.
const BURST: usize = 64;

/// A network interface.
pub struct Interface {
    served: Served<Cable, Rings>,
    mac: Mac,
    memory: Memory,
    grants: Grants,
    events: Arc<Events>,
    /// The kernel has called, and whoever serves has not seen to it.
    called: EventFd,
}

/// What an interface's kernel has granted.
struct Rings {
    transmit: Slots<TRANSMIT>,
    /// The pieces of a frame whose last one is not there yet.
    pieces: Vec<Piece>,
    receive: Slots<RECEIVE>,
    /// Empty pages that do not suffice for the frame that comes next.
    pages: VecDeque<Page>,
    /// A frame may fill several pages.
    takes_several: bool,
}

/// A piece of a frame: `struct xen_netif_tx_request`.
#[derive(Clone, Copy)]
struct Piece {
    grant: u32,
    offset: u16,
    flags: u16,
    id: u16,
    /// Of the first piece, that of the whole frame.
    size: u16,
}

/// An empty page: `struct xen_netif_rx_request`.
#[derive(Clone, Copy)]
struct Page {
    id: u16,
    grant: u32,
}

/// The end of the rings: the kernel has broken them.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Ring(#[from] Broken),
    #[error("a frame has more than {PIECES_MAX} pieces")]
    Pieces,
    #[error("a frame comes with what was not offered")]
    Extra,
}

impl Interface {
    /// The interface with this address and this cable, of a kernel with this memory and these grants, which hears by `events`.
    ///
    /// # Errors
    ///
    /// There are no descriptors.
    pub fn new(
        (mac, cable): (Mac, Cable),
        memory: Memory,
        grants: Grants,
        events: Arc<Events>,
    ) -> io::Result<Self> {
        Ok(Self {
            served: Served::new(Link::new("vif", 0, "tx-ring-ref"), cable),
            mac,
            memory,
            grants,
            events,
            called: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    fn connect(&self, store: &Store) -> Option<Kernel<Rings>> {
        let number = |name| self.served.link.number(store, name);
        let page = |name| {
            let grant = number(name)?;
            self.grants.page(grant, Use::Write).ok()
        };
        let is_set = |name| number(name) == Some(1);
        // Frontends that do not take copies are of the time before Linux knew the hypercalls that we have.
        is_set("request-rx-copy").then_some(())?;
        let rings = Rings {
            transmit: Slots::new(self.memory.clone(), page("tx-ring-ref")?),
            pieces: Vec::new(),
            receive: Slots::new(self.memory.clone(), page("rx-ring-ref")?),
            pages: VecDeque::new(),
            takes_several: is_set("feature-sg"),
        };
        let port = number("event-channel")?;
        Some(Kernel { rings, port })
    }

    fn call(&self) {
        // It can only fail when 2^64 calls are waiting.
        let _ = self.called.write(1);
    }

    /// Moves a burst each way; false: there is nothing more to be moved now.
    fn process_burst(&self) -> bool {
        let mut work = self.served.work();
        let Work { device, kernel } = &mut *work;
        let Some(Kernel { rings, port }) = kernel else {
            return false;
        };
        match rings.serve(device, &self.memory, &self.grants) {
            Ok(Burst { wants_call, more }) => {
                if wants_call {
                    self.events.port(*port);
                }
                more
            }
            Err(fault) => {
                say(&format!("the network is not served any more: {fault}"));
                *kernel = None;
                false
            }
        }
    }
}

impl Backend for Interface {
    fn announce(&self, store: &mut Store) {
        let mac = self.mac.to_string();
        let frontend = [("mac", &mac[..]), ("handle", "0")];
        let backend = [("mac", &mac[..]), ("handle", "0")];
        let features = [("feature-sg", "1"), ("feature-rx-copy", "1")];
        let backend = [backend, features].concat();
        self.served.link.announce(store, &frontend, &backend);
    }

    fn follow(&self, store: &mut Store) -> bool {
        let connect = |store: &Store| self.connect(store);
        self.served.follow(store, connect, || self.call())
    }

    fn serve(&self, port: u32) {
        if self.served.may_hear(port) {
            self.call();
        }
    }

    fn serve_calls(&self) -> io::Result<()> {
        let epoll = Epoll::new()?;
        for fd in [
            self.called.as_raw_fd(),
            self.served.work().device.readiness(),
        ] {
            // By edge: calls are not counted, and what is readable may have to wait until there are pages.
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        loop {
            match epoll.wait(-1, &mut [EpollEvent::default(); 2]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    result?;
                    self.process();
                }
            }
        }
    }

    fn process(&self) {
        // In between, the kernel may leave.
        while self.process_burst() {}
    }
}

/// The outcome of serving both rings.
struct Burst {
    /// The kernel is to hear of it.
    wants_call: bool,
    /// There may be more.
    more: bool,
}

impl Rings {
    /// Moves a burst each way.
    fn serve(
        &mut self,
        cable: &mut Cable,
        memory: &Memory,
        grants: &Grants,
    ) -> Result<Burst, Fault> {
        let sent = self.transmit(cable, memory, grants)?;
        let received = self.receive(cable, memory, grants)?;
        // Both, whatever the first says.
        let wants_call = self.transmit.tell()? | self.receive.tell()?;
        Ok(Burst {
            wants_call,
            more: sent == BURST || received == BURST,
        })
    }

    /// Gives the kernel's frames to the peer, and tells how many.
    fn transmit(
        &mut self,
        cable: &mut Cable,
        memory: &Memory,
        grants: &Grants,
    ) -> Result<usize, Fault> {
        for count in 0..BURST {
            if !cable.has_room() || !self.gather()? {
                return Ok(count);
            }
            let packet = cable.packet();
            let length = copy(&self.pieces, &mut packet[HEADER_SIZE..], memory, grants);
            let status = match length {
                Some(length) => {
                    packet[..HEADER_SIZE].fill(0);
                    cable.put(HEADER_SIZE + length);
                    DONE
                }
                None => FAILED,
            };
            for piece in self.pieces.drain(..) {
                let response = [piece.id.to_le_bytes(), status.to_le_bytes()].concat();
                self.transmit.answer(&response)?;
            }
        }
        Ok(BURST)
    }

    /// Takes the pieces of the next frame; false: not all of them are there.
    fn gather(&mut self) -> Result<bool, Fault> {
        loop {
            let Some(request) = self.transmit.take()? else {
                return Ok(false);
            };
            if self.pieces.len() == PIECES_MAX {
                return Err(Fault::Pieces);
            }
            let piece = Piece::from(request);
            if piece.flags & EXTRA_INFO != 0 {
                return Err(Fault::Extra);
            }
            self.pieces.push(piece);
            if piece.flags & MORE_DATA == 0 {
                return Ok(true);
            }
        }
    }

    /// Moves frames from the peer into pages, and tells how many.
    fn receive(
        &mut self,
        cable: &mut Cable,
        memory: &Memory,
        grants: &Grants,
    ) -> Result<usize, Fault> {
        for count in 0..BURST {
            let Some((_, frame)) = cable.receive() else {
                return Ok(count);
            };
            let needed = frame.len().div_ceil(PAGE as usize);
            // A frame that no pages of this kernel's can hold is lost.
            if needed == 1 || self.takes_several {
                while self.pages.len() < needed {
                    let Some(request) = self.receive.take()? else {
                        return Ok(count);
                    };
                    self.pages.push_back(Page::from(request));
                }
                self.place(frame, needed, memory, grants)?;
            }
            cable.received();
        }
        Ok(BURST)
    }

    /// Puts `frame` into the first `count` pages, if the kernel has granted each of them.
    fn place(
        &mut self,
        frame: &[u8],
        count: usize,
        memory: &Memory,
        grants: &Grants,
    ) -> Result<(), Fault> {
        let pages: Vec<_> = self.pages.drain(..count).collect();
        let places = pages.iter().map(|page| grants.page(page.grant, Use::Write));
        let places = places.collect::<Result<Vec<_>, _>>().ok();
        for (number, (page, part)) in pages.iter().zip(frame.chunks(PAGE as usize)).enumerate() {
            let (flags, status) = match &places {
                Some(places) => {
                    let place = GuestAddress(places[number]);
                    memory.write_slice(part, place).map_err(Broken::from)?;
                    let goes_on = number + 1 < count;
                    (if goes_on { GOES_ON } else { 0 }, part.len() as i16)
                }
                None => (0, FAILED),
            };
            // Behind the id the offset in the page.
            let words = [page.id, 0, flags, status as u16];
            let response = words.map(u16::to_le_bytes).concat();
            self.receive.answer(&response)?;
        }
        Ok(())
    }
}

impl From<[u8; TRANSMIT]> for Piece {
    fn from(request: [u8; TRANSMIT]) -> Self {
        let word = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        Self {
            grant: u32::from(word(0)) | (u32::from(word(2)) << 16),
            offset: word(4),
            flags: word(6),
            id: word(8),
            size: word(10),
        }
    }
}

impl From<[u8; RECEIVE]> for Page {
    fn from(request: [u8; RECEIVE]) -> Self {
        let [a, b, _, _, grant @ ..] = request;
        Self {
            id: u16::from_le_bytes([a, b]),
            grant: u32::from_le_bytes(grant),
        }
    }
}

/// Copies a frame of these pieces to `room`, and returns its length. None: it is no frame.
fn copy(pieces: &[Piece], room: &mut [u8], memory: &Memory, grants: &Grants) -> Option<usize> {
    let (first, others) = pieces.split_first()?;
    let length = usize::from(first.size);
    let of_others: usize = others.iter().map(|piece| usize::from(piece.size)).sum();
    let of_first = length.checked_sub(of_others)?;
    let frame = room.get_mut(..length).filter(|_| length >= FRAME_MIN)?;
    let sizes = others.iter().map(|piece| usize::from(piece.size));
    let mut rest = &mut frame[..];
    for (piece, size) in pieces.iter().zip([of_first].into_iter().chain(sizes)) {
        let offset = usize::from(piece.offset);
        let page = grants.page(piece.grant, Use::Read).ok()?;
        let (part, behind) = rest.split_at_mut_checked(size)?;
        let is_in_page = offset + size <= PAGE as usize;
        let place = is_in_page.then_some(GuestAddress(page + offset as u64))?;
        memory.read_slice(part, place).ok()?;
        rest = behind;
    }
    if first.flags & CSUM_BLANK != 0 {
        checksum::fill(frame)?;
    }
    Some(length)
}

#[cfg(test)]
mod tests;
