// SPDX-License-Identifier: GPL-2.0
//! A kernel, as far as the xenstore sees one.

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;
use crate::xen::ring::Ring;
use crate::xen::store::Store;

/// The kernel, and its page of the store.
pub(in crate::xen) struct Kernel {
    pub(in crate::xen) memory: Memory,
    requests: Ring,
    replies: Ring,
    /// What it has read of the next reply.
    incoming: Vec<u8>,
    request: u32,
}

/// What it gets.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::xen) struct Reply {
    pub(in crate::xen) kind: u32,
    pub(in crate::xen) payload: Vec<u8>,
}

impl Kernel {
    pub(in crate::xen) fn new(memory: Memory, page: u64) -> Self {
        memory
            .write_slice(&[0; 4096], GuestAddress(page))
            .expect("it is RAM");
        let ring = |data, indices| Ring {
            data: page + data,
            size: 1024,
            taken: page + indices,
            added: page + indices + 4,
        };
        let (requests, replies) = (ring(0, 2048), ring(1024, 2056));
        Self {
            memory,
            requests,
            replies,
            incoming: Vec::new(),
            request: 0,
        }
    }

    /// Puts as many of these bytes into the ring as there is room for.
    pub(in crate::xen) fn put(&self, bytes: &[u8]) -> usize {
        self.requests.add(&self.memory, bytes).unwrap_or(0)
    }

    /// Sends a request, if there is room for it.
    pub(in crate::xen) fn send(&mut self, kind: u32, transaction: u32, payload: &[u8]) {
        self.request += 1;
        let header = [kind, self.request, transaction, payload.len() as u32];
        let bytes: Vec<_> = header
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .chain(payload.iter().copied())
            .collect();
        if self
            .requests
            .room(&self.memory)
            .is_ok_and(|room| room >= bytes.len())
        {
            self.put(&bytes);
        }
    }

    /// The replies and events that are there as a whole.
    pub(in crate::xen) fn replies(&mut self) -> Vec<Reply> {
        self.incoming
            .extend(self.replies.take(&self.memory).unwrap_or_default());
        let mut replies = Vec::new();
        while let Some(header) = self.incoming.first_chunk::<16>() {
            let word = |index: usize| {
                u32::from_le_bytes(
                    header[4 * index..4 * index + 4]
                        .try_into()
                        .expect("4 bytes"),
                )
            };
            let (kind, length) = (word(0), word(3) as usize);
            if self.incoming.len() < 16 + length {
                break;
            }
            let payload = self.incoming.drain(..16 + length).skip(16).collect();
            replies.push(Reply { kind, payload });
        }
        replies
    }

    /// Sends a request however long, and returns all that comes then.
    pub(in crate::xen) fn ask_all(
        &mut self,
        store: &mut Store,
        kind: u32,
        transaction: u32,
        payload: &[u8],
    ) -> Vec<Reply> {
        self.request += 1;
        let header = [kind, self.request, transaction, payload.len() as u32];
        let bytes: Vec<_> = header
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .chain(payload.iter().copied())
            .collect();
        let (mut sent, mut replies) = (0, Vec::new());
        loop {
            sent += self.put(&bytes[sent..]);
            let busy = store.serve().expect("the kernel is in order").busy;
            replies.extend(self.replies());
            if !busy {
                return replies;
            }
        }
    }

    /// The reply alone, without events.
    pub(in crate::xen) fn ask(
        &mut self,
        store: &mut Store,
        kind: u32,
        transaction: u32,
        payload: &[u8],
    ) -> Reply {
        let replies = self.ask_all(store, kind, transaction, payload);
        replies
            .into_iter()
            .find(|reply| reply.kind != 15)
            .expect("there is one")
    }
}
