// SPDX-License-Identifier: GPL-2.0
//! The Guest's cable, at the end that a device holds: the [`Peer`] at the other, as long as it is there, and the one
//! packet that waits for room with it.

use std::io;
use std::mem;
use std::os::fd::RawFd;

use super::peer::{Header, Peer, FRAME_MAX, FRAME_MIN, HEADER_SIZE};

/// Told when the cable is cut, with the reason.
type OnCut = Box<dyn Fn(&io::Error) + Send>;

/// A cable.
pub struct Cable {
    peer: Box<dyn Peer>,
    on_cut: OnCut,
    is_up: bool,
    /// The packet that is being sent, and its length; 0: none.
    packet: Box<[u8]>,
    waiting: usize,
}

impl Cable {
    /// The cable that ends at `peer`. `on_cut` is told when it ends there no longer, once.
    pub fn new(peer: Box<dyn Peer>, on_cut: impl Fn(&io::Error) + Send + 'static) -> Self {
        Self {
            peer,
            on_cut: Box::new(on_cut),
            is_up: true,
            packet: vec![0; HEADER_SIZE + FRAME_MAX].into(),
            waiting: 0,
        }
    }

    /// Is somebody at the other end?
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// See [`Peer::mtu`].
    pub fn mtu(&self) -> u16 {
        self.peer.mtu()
    }

    /// See [`Peer::offloads`].
    pub fn offloads(&self) -> u64 {
        self.peer.offloads()
    }

    /// See [`Peer::agree`].
    pub fn agree(&mut self, offloads: u64) {
        if let Err(error) = self.peer.agree(offloads) {
            cut(&mut self.is_up, &self.on_cut, &error);
        }
    }

    /// See [`Peer::readiness`].
    pub fn readiness(&self) -> RawFd {
        self.peer.readiness()
    }

    /// The next frame, if there is one; the same until [`Cable::received`] is called.
    pub fn receive(&mut self) -> Option<(Header, &[u8])> {
        if !self.is_up {
            return None;
        }
        match self.peer.receive() {
            Ok(packet) => packet,
            Err(error) => {
                cut(&mut self.is_up, &self.on_cut, &error);
                None
            }
        }
    }

    /// The frame that [`Cable::receive`] has returned is done with.
    pub fn received(&mut self) {
        self.peer.received();
    }

    /// Does a packet wait for room with the peer?
    pub fn is_waiting(&self) -> bool {
        self.waiting != 0
    }

    /// Sends the packet that waits, if there is one; false: there is no room for it now. Otherwise the next can be put into
    /// [`Cable::packet`].
    pub fn has_room(&mut self) -> bool {
        if self.is_up && self.waiting != 0 {
            match self.peer.send(&mut self.packet[..self.waiting]) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => cut(&mut self.is_up, &self.on_cut, &error),
            }
        }
        self.waiting = 0;
        true
    }

    /// Room for a header and the longest frame. What is there, [`Cable::put`] sends.
    pub fn packet(&mut self) -> &mut [u8] {
        &mut self.packet
    }

    /// The first `length` bytes of [`Cable::packet`] are a packet, which waits from now on. One without a whole frame is lost on
    /// the way, as is any without a peer.
    pub fn put(&mut self, length: usize) {
        if self.is_up && length >= HEADER_SIZE + FRAME_MIN {
            self.waiting = length;
        }
    }
}

/// There is no peer any more.
fn cut(is_up: &mut bool, on_cut: &OnCut, error: &io::Error) {
    if mem::replace(is_up, false) {
        on_cut(error);
    }
}
