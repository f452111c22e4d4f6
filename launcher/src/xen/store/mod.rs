// SPDX-License-Identifier: GPL-2.0
//! The xenstore: a small tree of text by which a kernel and the backends of its devices find each other.
//!
//! Source: Xen's docs/misc/xenstore.txt and xenstore-ring.txt. The kernel reads everything, and changes what is
//! [its own](tree::HOME). What it sends is copied once.
//!
//! A transaction works on a copy of the tree. If it changes something, and anybody has changed something since it
//! began, it is for the kernel to do again: `EAGAIN`.
//!
//! No request is taken as long as anything of the answers to those before does not fit into the ring, so a kernel
//! that does not read has no more than one request's answers here: limits are [`WATCHES_MAX`], [`TRANSACTIONS_MAX`],
//! [`CHANGES_MAX`], and those of the [`tree`].

pub mod tree;

use std::collections::{BTreeMap, VecDeque};
use std::mem::{offset_of, size_of};

use xen_abi::rings::{Store as Page, StoreHeader, STORE_PAYLOAD_MAX};

use crate::memory::Memory;
use crate::xen::ring::{Broken, Ring};
use tree::{Path, Refused, Tree, EACCES, EINVAL, ENOENT, ENOSPC, HOME};

/// Watches of the kernel's.
pub const WATCHES_MAX: usize = 128;
/// Transactions that it has begun and not ended.
pub const TRANSACTIONS_MAX: usize = 10;
/// Changes in one transaction.
pub const CHANGES_MAX: usize = 256;

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const WATCH: u32 = 4;
const UNWATCH: u32 = 5;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const GET_DOMAIN_PATH: u32 = 10;
const WRITE: u32 = 11;
const MKDIR: u32 = 12;
const RM: u32 = 13;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;

const HEADER: usize = size_of::<StoreHeader>();
const DONE: &[u8] = b"OK\0";
const EAGAIN: Refused = Refused("EAGAIN");
const EEXIST: Refused = Refused("EEXIST");
const E2BIG: Refused = Refused("E2BIG");
const ENOSYS: Refused = Refused("ENOSYS");

/// The kernel no longer speaks the protocol. Nothing it sends can be understood any more.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum StoreError {
    #[error("{0}")]
    Ring(#[from] Broken),
    #[error("a message of {0} bytes is too long")]
    TooLong(u32),
}

/// What was to do for the store.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Anything, of which the kernel is then to hear.
    pub busy: bool,
    /// A request has changed something: our side looks, before the kernel hears of it, and serves on.
    pub changed: bool,
}

/// The store.
pub struct Store {
    memory: Memory,
    requests: Ring,
    replies: Ring,
    /// The beginning of the next request.
    incoming: Vec<u8>,
    outgoing: VecDeque<Message>,
    tree: Tree,
    /// Counts the changes of the tree.
    generation: u64,
    watches: Vec<Watch>,
    next_watch: u64,
    transactions: BTreeMap<u32, Transaction>,
    next_transaction: u32,
}

/// What goes to the kernel.
enum Message {
    /// These bytes, or what is left of them.
    Bytes(Vec<u8>),
    /// The watch of this number, if it is still there, has seen a change at this path.
    Event(u64, Path),
}

struct Watch {
    number: u64,
    path: Path,
    /// The path was named without a "/" in front, and so are those that it hears of.
    relative: bool,
    token: Vec<u8>,
}

struct Transaction {
    tree: Tree,
    /// The generation that `tree` was copied from.
    base: u64,
    changes: Vec<Change>,
}

#[derive(Clone)]
struct Change {
    path: Path,
    removed: bool,
}

/// An answer: the payload.
type Answer = Result<Vec<u8>, Refused>;

impl Store {
    /// An empty store, whose page is at GPA `page` of `memory`.
    pub fn new(memory: Memory, page: u64) -> Self {
        let ring = |data, taken, added| Ring {
            data: page + data as u64,
            size: 1024,
            taken: page + taken as u64,
            added: page + added as u64,
        };
        Self {
            memory,
            requests: ring(
                offset_of!(Page, requests),
                offset_of!(Page, requests_taken),
                offset_of!(Page, requests_added),
            ),
            replies: ring(
                offset_of!(Page, replies),
                offset_of!(Page, replies_taken),
                offset_of!(Page, replies_added),
            ),
            incoming: Vec::new(),
            outgoing: VecDeque::new(),
            tree: Tree::default(),
            generation: 0,
            watches: Vec::new(),
            next_watch: 0,
            transactions: BTreeMap::new(),
            next_transaction: 0,
        }
    }

    /// Serves the kernel's requests until there is none, or no room for answers, or one has changed something.
    ///
    /// # Errors
    ///
    /// The kernel no longer speaks the protocol.
    pub fn serve(&mut self) -> Result<Served, StoreError> {
        let (mut busy, before) = (false, self.generation);
        loop {
            busy |= self.send()?;
            if !self.outgoing.is_empty() {
                return Ok(Served {
                    busy,
                    changed: false,
                });
            }
            if !self.has_request()? {
                let bytes = self.requests.take(&self.memory)?;
                if bytes.is_empty() {
                    return Ok(Served {
                        busy,
                        changed: false,
                    });
                }
                self.incoming.extend(bytes);
                busy = true;
            } else {
                self.take_request();
                if self.generation != before {
                    return Ok(Served {
                        busy: true,
                        changed: true,
                    });
                }
            }
        }
    }

    /// Our side reads a node's text.
    pub fn get(&self, path: &str) -> Option<&str> {
        let path = Path::parse(path.as_bytes()).ok()?;
        std::str::from_utf8(self.tree.read(&path).ok()?).ok()
    }

    /// Our side sets a node's text. The kernel can have left no room for it; tells whether there was.
    pub fn set(&mut self, path: &str, text: &str) -> bool {
        let Ok(path) = Path::parse(path.as_bytes()) else {
            return false;
        };
        let is_set = self.tree.write(&path, text.as_bytes()).is_ok();
        if is_set {
            self.tell(vec![Change {
                path,
                removed: false,
            }]);
        }
        is_set
    }

    /// Puts as much into the ring as there is room for. Tells whether it was anything.
    fn send(&mut self) -> Result<bool, Broken> {
        let mut sent = false;
        while let Some(message) = self.outgoing.pop_front() {
            let bytes = match message {
                Message::Bytes(bytes) => bytes,
                Message::Event(number, path) => self.event(number, &path).unwrap_or_default(),
            };
            let count = self.replies.add(&self.memory, &bytes)?;
            sent |= count != 0;
            if count < bytes.len() {
                self.outgoing
                    .push_front(Message::Bytes(bytes[count..].into()));
                break;
            }
        }
        Ok(sent)
    }

    fn event(&self, number: u64, path: &Path) -> Option<Vec<u8>> {
        let watch = self.watches.iter().find(|watch| watch.number == number)?;
        let path = match watch.relative {
            true => &path.as_str()[HOME.len() + 1..],
            false => path.as_str(),
        };
        let payload = [path.as_bytes(), b"\0", &watch.token, b"\0"].concat();
        // What cannot be told in one message cannot be told.
        let header = StoreHeader {
            kind: WATCH_EVENT,
            request: 0,
            transaction: 0,
            length: 0,
        };
        (payload.len() <= STORE_PAYLOAD_MAX as usize).then(|| message(header, &payload))
    }

    /// Has all of a request come?
    fn has_request(&self) -> Result<bool, StoreError> {
        let Some(header) = header(&self.incoming) else {
            return Ok(false);
        };
        match header.length > STORE_PAYLOAD_MAX {
            true => Err(StoreError::TooLong(header.length)),
            false => Ok(self.incoming.len() >= HEADER + header.length as usize),
        }
    }

    /// Does the request that has come.
    fn take_request(&mut self) {
        let Some(header) = header(&self.incoming) else {
            return;
        };
        let request: Vec<_> = self
            .incoming
            .drain(..HEADER + header.length as usize)
            .collect();
        let mut after = Vec::new();
        let answer = self.answer(&header, &request[HEADER..], &mut after);
        let (kind, payload) = match answer {
            Ok(payload) if payload.len() > STORE_PAYLOAD_MAX as usize => (ERROR, named(E2BIG)),
            Ok(payload) => (header.kind, payload),
            Err(refused) => (ERROR, named(refused)),
        };
        let reply = message(StoreHeader { kind, ..header }, &payload);
        self.outgoing.push_back(Message::Bytes(reply));
        self.outgoing.extend(after);
    }

    /// Does a request, and returns the answer. `after` is what else goes to the kernel, behind it.
    fn answer(&mut self, header: &StoreHeader, payload: &[u8], after: &mut Vec<Message>) -> Answer {
        match header.kind {
            DIRECTORY => {
                let children = self
                    .tree_of(header.transaction)?
                    .children(&only_path(payload)?)?;
                Ok(children
                    .iter()
                    .flat_map(|name| [name.as_bytes(), b"\0"].concat())
                    .collect())
            }
            READ => Ok(self
                .tree_of(header.transaction)?
                .read(&only_path(payload)?)?
                .into()),
            WATCH => self.watch(payload, after),
            UNWATCH => self.unwatch(payload),
            TRANSACTION_START if header.transaction == 0 => self.begin(),
            TRANSACTION_END => self.end(header.transaction, payload, after),
            GET_DOMAIN_PATH => match words(payload)?[..] {
                [domain] => Ok([
                    b"/local/domain/",
                    number(domain)?.to_string().as_bytes(),
                    b"\0",
                ]
                .concat()),
                _ => Err(EINVAL),
            },
            WRITE => {
                let end = payload.iter().position(|&byte| byte == 0).ok_or(EINVAL)?;
                let (path, value) = (Path::parse(&payload[..end])?, &payload[end + 1..]);
                self.change(header.transaction, &path, after, |tree| {
                    tree.write(&path, value).map(|()| Some(false))
                })
            }
            MKDIR => {
                let path = only_path(payload)?;
                self.change(header.transaction, &path, after, |tree| {
                    match tree.read(&path) {
                        Ok(_) => Ok(None),
                        Err(_) => tree.write(&path, b"").map(|()| Some(false)),
                    }
                })
            }
            RM => {
                let path = only_path(payload)?;
                self.change(header.transaction, &path, after, |tree| {
                    tree.remove(&path)
                        .map(|was_there| was_there.then_some(true))
                })
            }
            _ => Err(ENOSYS),
        }
    }

    /// The tree as a request sees it.
    fn tree_of(&self, transaction: u32) -> Result<&Tree, Refused> {
        match transaction {
            0 => Ok(&self.tree),
            _ => Ok(&self.transactions.get(&transaction).ok_or(ENOENT)?.tree),
        }
    }

    /// The kernel changes what is at `path`: `change` says whether something has changed, and then whether it is gone.
    fn change(
        &mut self,
        transaction: u32,
        path: &Path,
        after: &mut Vec<Message>,
        change: impl FnOnce(&mut Tree) -> Result<Option<bool>, Refused>,
    ) -> Answer {
        let home = Path::parse(HOME.as_bytes())?;
        if !path.is_below(&home) {
            return Err(EACCES);
        }
        if transaction == 0 {
            if let Some(removed) = change(&mut self.tree)? {
                after.extend(self.changed(&[Change {
                    path: path.clone(),
                    removed,
                }]));
            }
            return Ok(DONE.into());
        }
        let transaction = self.transactions.get_mut(&transaction).ok_or(ENOENT)?;
        if transaction.changes.len() == CHANGES_MAX {
            return Err(ENOSPC);
        }
        if let Some(removed) = change(&mut transaction.tree)? {
            transaction.changes.push(Change {
                path: path.clone(),
                removed,
            });
        }
        Ok(DONE.into())
    }

    fn begin(&mut self) -> Answer {
        if self.transactions.len() == TRANSACTIONS_MAX {
            return Err(ENOSPC);
        }
        // 0 is none.
        let used = |number: &u32| *number == 0 || self.transactions.contains_key(number);
        let mut number = self.next_transaction;
        while used(&number) {
            number = number.wrapping_add(1);
        }
        self.next_transaction = number.wrapping_add(1);
        let transaction = Transaction {
            tree: self.tree.clone(),
            base: self.generation,
            changes: Vec::new(),
        };
        self.transactions.insert(number, transaction);
        Ok(format!("{number}\0").into_bytes())
    }

    fn end(&mut self, number: u32, payload: &[u8], after: &mut Vec<Message>) -> Answer {
        let keep = match payload {
            b"T\0" => true,
            b"F\0" => false,
            _ => return Err(EINVAL),
        };
        let transaction = self.transactions.remove(&number).ok_or(ENOENT)?;
        if keep && !transaction.changes.is_empty() {
            if transaction.base != self.generation {
                return Err(EAGAIN);
            }
            self.tree = transaction.tree;
            after.extend(self.changed(&transaction.changes));
        }
        Ok(DONE.into())
    }

    fn watch(&mut self, payload: &[u8], after: &mut Vec<Message>) -> Answer {
        let watch = self.watch_of(payload)?;
        if self.watches.iter().any(|other| other.is(&watch)) {
            return Err(EEXIST);
        }
        if self.watches.len() == WATCHES_MAX {
            return Err(E2BIG);
        }
        // It fires once at once.
        after.push(Message::Event(watch.number, watch.path.clone()));
        self.next_watch += 1;
        self.watches.push(watch);
        Ok(DONE.into())
    }

    fn unwatch(&mut self, payload: &[u8]) -> Answer {
        let watch = self.watch_of(payload)?;
        let place = self
            .watches
            .iter()
            .position(|other| other.is(&watch))
            .ok_or(ENOENT)?;
        self.watches.remove(place);
        Ok(DONE.into())
    }

    fn watch_of(&self, payload: &[u8]) -> Result<Watch, Refused> {
        let [path, token] = words(payload)?[..] else {
            return Err(EINVAL);
        };
        let (number, relative) = (self.next_watch, !path.starts_with(b"/"));
        Ok(Watch {
            number,
            path: Path::parse(path)?,
            relative,
            token: token.into(),
        })
    }

    /// The tree has changed so: whoever watches is to hear of it.
    fn changed(&mut self, changes: &[Change]) -> Vec<Message> {
        self.generation += 1;
        let heard = |change: &Change| {
            let heard = self
                .watches
                .iter()
                .filter_map(|watch| Some((watch.number, watch.hears(change)?)));
            heard
                .map(|(number, path)| Message::Event(number, path))
                .collect::<Vec<_>>()
        };
        changes.iter().flat_map(heard).collect()
    }

    fn tell(&mut self, changes: Vec<Change>) {
        let events = self.changed(&changes);
        self.outgoing.extend(events);
    }
}

impl Watch {
    fn is(&self, other: &Self) -> bool {
        (&self.path, self.relative, &self.token) == (&other.path, other.relative, &other.token)
    }

    /// The path that it hears of when this has changed: a change at its path or below, and the end of it.
    fn hears(&self, change: &Change) -> Option<Path> {
        if change.path == self.path || change.path.is_below(&self.path) {
            return Some(change.path.clone());
        }
        let is_gone = change.removed && self.path.is_below(&change.path);
        is_gone.then(|| self.path.clone())
    }
}

fn named(refused: Refused) -> Vec<u8> {
    [refused.0.as_bytes(), b"\0"].concat()
}

/// The header at the beginning of `bytes`, if they are enough.
fn header(bytes: &[u8]) -> Option<StoreHeader> {
    let word = |index: usize| {
        let bytes = bytes.get(4 * index..4 * index + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    Some(StoreHeader {
        kind: word(0)?,
        request: word(1)?,
        transaction: word(2)?,
        length: word(3)?,
    })
}

/// A message with this payload, whatever length `header` says.
fn message(header: StoreHeader, payload: &[u8]) -> Vec<u8> {
    let words = [
        header.kind,
        header.request,
        header.transaction,
        payload.len() as u32,
    ];
    let words = words.into_iter().flat_map(u32::to_le_bytes);
    words.chain(payload.iter().copied()).collect()
}

/// The words of a payload: each ends with a NUL.
fn words(payload: &[u8]) -> Result<Vec<&[u8]>, Refused> {
    let payload = payload.strip_suffix(b"\0").ok_or(EINVAL)?;
    Ok(payload.split(|&byte| byte == 0).collect())
}

/// The payload is one path.
fn only_path(payload: &[u8]) -> Result<Path, Refused> {
    match words(payload)?[..] {
        [path] => Path::parse(path),
        _ => Err(EINVAL),
    }
}

fn number(word: &[u8]) -> Result<u16, Refused> {
    let text = std::str::from_utf8(word).map_err(|_| EINVAL)?;
    text.parse().map_err(|_| EINVAL)
}

#[cfg(test)]
mod tests;
