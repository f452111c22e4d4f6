// SPDX-License-Identifier: GPL-2.0
//! The content of a file that the Guest has made or changed: pages in memory, over a file of the
//! Host's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::Errno;

use super::budget::{Budget, Charge};

/// Bytes that are kept, or not, as one.
pub(super) const PAGE: u64 = 4096;
/// A page of memory takes so much of the budget: beside the bytes, its place in the tree.
const PAGE_COST: u64 = PAGE + 64;
/// The largest size of a file.
const SIZE_MAX: u64 = i64::MAX as u64;
/// So much is read from the Host's file at once.
const CHUNK: u64 = 1 << 17;

/// The content where there is no page.
pub(super) enum Below {
    /// Zeros.
    Nothing,
    /// The Host's file, as it is when it is read.
    File(File),
    /// The Host's file, which the user of lg may not read.
    Unreadable,
}

/// The content of a regular file.
pub(super) struct Content {
    size: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    below: Below,
    /// Up to here [`Below`] shows.
    below_end: u64,
    charge: Charge,
}

impl Content {
    /// An empty file's.
    pub(super) fn empty(budget: &Arc<Budget>) -> io::Result<Self> {
        Self::over(Below::Nothing, 0, budget)
    }

    /// That of the Host's file `below`, which has `size` bytes.
    pub(super) fn over(below: Below, size: u64, budget: &Arc<Budget>) -> io::Result<Self> {
        Ok(Self {
            size,
            pages: BTreeMap::new(),
            below_end: match below {
                Below::Nothing => 0,
                _ => size,
            },
            below,
            charge: Charge::new(budget, 0)?,
        })
    }

    /// In bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Its use of space, in units of 512 bytes.
    pub(super) fn blocks(&self) -> u64 {
        (self.pages.len() as u64 * PAGE + self.below_end).div_ceil(512)
    }

    /// Does it keep a file of the Host's open?
    pub(super) fn keeps_file(&self) -> bool {
        matches!(self.below, Below::File(_))
    }

    /// Reads all that is below into memory, and needs it no longer.
    pub(super) fn take_in(&mut self) -> io::Result<()> {
        self.fill(0..self.below_end.div_ceil(PAGE))?;
        self.below = Below::Nothing;
        self.below_end = 0;
        Ok(())
    }

    /// Writes what is at `offset`, at most `length` bytes, to `out`. Returns how much there was.
    pub(super) fn read<W: Write + ?Sized>(
        &self,
        offset: u64,
        length: u64,
        out: &mut W,
    ) -> io::Result<u64> {
        let end = offset.saturating_add(length).min(self.size);
        let mut at = offset;
        while at < end {
            let index = at / PAGE;
            let (page_at, page_end) = (at - index * PAGE, end.min((index + 1) * PAGE));
            if let Some(page) = self.pages.get(&index) {
                let part = page_at as usize..(page_end - index * PAGE) as usize;
                out.write_all(&page[part])?;
                at = page_end;
                continue;
            }
            // All up to the next page that there is, in pieces.
            let next = self.pages.range(index..).next();
            let next = next.map_or(end, |(&next, _)| end.min(next * PAGE));
            let mut piece = vec![0; (next - at).min(CHUNK) as usize];
            self.read_below(at, &mut piece)?;
            out.write_all(&piece)?;
            at += piece.len() as u64;
        }
        Ok(at.saturating_sub(offset))
    }

    /// Reads what is below at `offset` into `piece`, which is of zeros.
    fn read_below(&self, offset: u64, piece: &mut [u8]) -> io::Result<()> {
        let length = self.below_end.saturating_sub(offset);
        let length = length.min(piece.len() as u64) as usize;
        let (mut piece, mut offset) = (&mut piece[..length], offset);
        let file = match &self.below {
            Below::Nothing => return Ok(()),
            Below::Unreadable if piece.is_empty() => return Ok(()),
            Below::Unreadable => return Err(Errno::ACCESS.into()),
            Below::File(file) => file,
        };
        while !piece.is_empty() {
            match file.read_at(piece, offset) {
                // The Host has made it shorter.
                Ok(0) => break,
                Ok(count) => {
                    piece = &mut piece[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes `length` bytes from `from` for those at `offset`: all, or, if the budget does not
    /// suffice, none.
    pub(super) fn write<R: Read + ?Sized>(
        &mut self,
        offset: u64,
        length: u64,
        from: &mut R,
    ) -> io::Result<()> {
        let end = offset.checked_add(length).filter(|&end| end <= SIZE_MAX);
        let end = end.ok_or(Errno::FBIG)?;
        if length == 0 {
            return Ok(());
        }
        self.charge_missing(offset / PAGE..end.div_ceil(PAGE))?;
        let written = self.write_pages(offset, end, from);
        self.settle();
        written
    }

    fn write_pages<R: Read + ?Sized>(
        &mut self,
        offset: u64,
        end: u64,
        from: &mut R,
    ) -> io::Result<()> {
        let mut at = offset;
        while at < end {
            let index = at / PAGE;
            let (start, page_end) = (index * PAGE, end.min((index + 1) * PAGE));
            // What is overwritten is read, too: if `from` fails, it must still be there.
            let page = self.page(index)?;
            from.read_exact(&mut page[(at - start) as usize..(page_end - start) as usize])?;
            at = page_end;
            self.size = self.size.max(at);
        }
        Ok(())
    }

    /// After a failure: gives back what was paid for pages that were not made.
    fn settle(&mut self) {
        let there = self.pages.len() as u64 * PAGE_COST;
        self.charge.give_back(self.charge.bytes() - there);
    }

    /// Makes those of `pages` that there are not, from what is below.
    fn fill(&mut self, mut pages: std::ops::Range<u64>) -> io::Result<()> {
        self.charge_missing(pages.clone())?;
        let filled = pages.try_for_each(|index| self.page(index).map(drop));
        self.settle();
        filled
    }

    /// Pays for those pages that there are not.
    fn charge_missing(&mut self, pages: std::ops::Range<u64>) -> io::Result<()> {
        let there = self.pages.range(pages.clone()).count() as u64;
        let missing = pages.end - pages.start - there;
        let cost = missing.checked_mul(PAGE_COST).ok_or(Errno::NOSPC)?;
        self.charge.add(cost)
    }

    /// The page, which is paid for. A new one has what is below.
    fn page(&mut self, index: u64) -> io::Result<&mut [u8; PAGE as usize]> {
        let is_there = self.pages.contains_key(&index);
        if !is_there {
            let mut page = Box::new([0; PAGE as usize]);
            if !matches!(self.below, Below::Unreadable) {
                self.read_below(index * PAGE, &mut page[..])?;
            }
            self.pages.insert(index, page);
        }
        Ok(self.pages.get_mut(&index).ok_or(Errno::IO)?)
    }

    /// Makes it shorter, or longer by a hole.
    pub(super) fn set_size(&mut self, size: u64) -> io::Result<()> {
        if size > SIZE_MAX {
            return Err(Errno::FBIG.into());
        }
        let gone = self.pages.split_off(&size.div_ceil(PAGE));
        self.charge.give_back(gone.len() as u64 * PAGE_COST);
        if let Some(page) = self.pages.get_mut(&(size / PAGE)) {
            page[(size % PAGE) as usize..].fill(0);
        }
        self.below_end = self.below_end.min(size);
        if self.below_end == 0 {
            self.below = Below::Nothing;
        }
        self.size = size;
        Ok(())
    }

    /// Has memory ready for `length` bytes at `offset`.
    pub(super) fn allocate(&mut self, offset: u64, length: u64, keep_size: bool) -> io::Result<()> {
        let end = offset.checked_add(length).filter(|&end| end <= SIZE_MAX);
        let end = end.ok_or(Errno::FBIG)?;
        // Below there is something already.
        let first = (offset / PAGE).max(self.below_end / PAGE);
        let pages = first..end.div_ceil(PAGE).max(first);
        self.fill(pages)?;
        if !keep_size {
            self.size = self.size.max(end);
        }
        Ok(())
    }

    /// Makes zeros of `length` bytes at `offset`.
    pub(super) fn punch(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.saturating_add(length).min(self.size);
        if offset >= end {
            return Ok(());
        }
        // What is below cannot go but by a page of zeros over it.
        let below = offset.min(self.below_end)..end.min(self.below_end);
        let covered = below.start / PAGE..below.end.div_ceil(PAGE);
        let last = end.div_ceil(PAGE);
        // The first and the last stay in part, if there is more behind them.
        let whole = offset.div_ceil(PAGE)..if end == self.size { last } else { end / PAGE };
        if !below.is_empty() {
            self.fill(covered)?;
        }
        let indices: Vec<_> = self
            .pages
            .range(offset / PAGE..last)
            .map(|(&i, _)| i)
            .collect();
        for index in indices {
            let start = index * PAGE;
            if whole.contains(&index) && start >= self.below_end {
                self.pages.remove(&index);
                self.charge.give_back(PAGE_COST);
            } else if let Some(page) = self.pages.get_mut(&index) {
                let from = offset.saturating_sub(start) as usize;
                let to = (end - start).min(PAGE) as usize;
                page[from..to].fill(0);
            }
        }
        Ok(())
    }

    /// The next place from `offset` on where there is data, or with `hole` none. ENXIO says that
    /// there is none.
    pub(super) fn seek(&self, offset: u64, hole: bool) -> io::Result<u64> {
        if offset >= self.size {
            return Err(Errno::NXIO.into());
        }
        let mut at = offset;
        loop {
            let index = at / PAGE;
            let is_data = at < self.below_end || self.pages.contains_key(&index);
            if is_data != hole {
                return Ok(at);
            }
            at = match hole {
                true => (index + 1) * PAGE,
                false => match self.pages.range(index..).next() {
                    Some((&next, _)) => next * PAGE,
                    None => self.size,
                },
            };
            if hole && at < self.below_end {
                at = self.below_end;
            }
            if at >= self.size {
                return if hole {
                    Ok(self.size)
                } else {
                    Err(Errno::NXIO.into())
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The size of the file below, in pages and a bit.
    const BELOW: usize = 3 * PAGE as usize + 77;

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize, usize),
        SetSize(usize),
        Punch(usize, usize),
        Allocate(usize, usize, bool),
        TakeIn,
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = || 0..6 * PAGE as usize;
        let length = || prop_oneof![0..300usize, Just(PAGE as usize), 0..2 * PAGE as usize];
        prop_oneof![
            4 => (at(), length()).prop_map(|(at, length)| Step::Write(at, length)),
            2 => at().prop_map(Step::SetSize),
            2 => (at(), length()).prop_map(|(at, length)| Step::Punch(at, length)),
            1 => (at(), 1..9999usize, any::<bool>()).prop_map(|(at, length, keep)| Step::Allocate(at, length, keep)),
            1 => Just(Step::TakeIn),
        ]
    }

    fn below() -> Vec<u8> {
        (0..BELOW).map(|n| (n % 251) as u8 + 1).collect()
    }

    fn over_file(budget: &Arc<Budget>) -> Content {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&below()).unwrap();
        Content::over(Below::File(file), BELOW as u64, budget).unwrap()
    }

    fn all(content: &Content) -> Vec<u8> {
        let mut bytes = Vec::new();
        content.read(0, u64::MAX, &mut bytes).unwrap();
        bytes
    }

    proptest! {
        /// It is what a plain array of bytes would be; and the budget is as it was in the end.
        #[test]
        fn bytes_are_as_in_an_array(steps in proptest::collection::vec(step(), 0..20), at in 0..BELOW, length in 0..9999u64) {
            let budget = Budget::new(1 << 20);
            let mut content = over_file(&budget);
            let mut expected = below();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Write(at, length) => {
                        let bytes = vec![200 + (number % 50) as u8; length];
                        content.write(at as u64, length as u64, &mut &bytes[..]).unwrap();
                        if length > 0 {
                            let size = expected.len().max(at + length);
                            expected.resize(size, 0);
                            expected[at..at + length].copy_from_slice(&bytes);
                        }
                    }
                    Step::SetSize(size) => {
                        content.set_size(size as u64).unwrap();
                        expected.resize(size, 0);
                    }
                    Step::Punch(at, length) => {
                        content.punch(at as u64, length as u64).unwrap();
                        let end = expected.len().min(at + length);
                        if at < end {
                            expected[at..end].fill(0);
                        }
                    }
                    Step::Allocate(at, length, keep_size) => {
                        content.allocate(at as u64, length as u64, keep_size).unwrap();
                        if !keep_size {
                            let size = expected.len().max(at + length);
                            expected.resize(size, 0);
                        }
                    }
                    Step::TakeIn => content.take_in().unwrap(),
                }
                prop_assert_eq!(content.size(), expected.len() as u64);
                prop_assert_eq!(&all(&content), &expected);
            }
            // A part of it, and what is said of holes.
            let mut part = Vec::new();
            content.read(at as u64, length, &mut part).unwrap();
            let end = expected.len().min(at + length as usize);
            prop_assert_eq!(&part[..], expected.get(at..end).unwrap_or_default());
            let mut hole = 0;
            while let Ok(data) = content.seek(hole, false) {
                prop_assert!(expected[hole as usize..data as usize].iter().all(|&byte| byte == 0));
                hole = content.seek(data, true).unwrap();
                prop_assert!(hole > data);
                if hole == content.size() {
                    break;
                }
            }
            drop(content);
            prop_assert_eq!(budget.left(), budget.max());
        }
    }

    #[test]
    fn a_write_that_does_not_fit_changes_nothing() {
        let budget = Budget::new(3 * PAGE_COST);
        let mut content = over_file(&budget);
        let bytes = [7; 4 * PAGE as usize];
        let error = content
            .write(0, bytes.len() as u64, &mut &bytes[..])
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(all(&content), below());
        assert_eq!(budget.left(), budget.max());
        content.write(0, 3 * PAGE, &mut &bytes[..]).unwrap();
        assert_eq!(budget.left(), 0);
        content.set_size(0).unwrap();
        assert_eq!(budget.left(), budget.max());
        assert!(content.write(u64::MAX - 5, 3, &mut &bytes[..]).is_err());
    }

    #[test]
    fn what_is_not_written_is_the_hosts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        // A hole, of which nothing must be copied.
        let file = File::create(&path).unwrap();
        file.set_len(10 << 30).unwrap();
        let budget = Budget::new(2 * PAGE_COST);
        let below = Below::File(File::open(&path).unwrap());
        let mut content = Content::over(below, 10 << 30, &budget).unwrap();
        content.write(10 << 30, 5, &mut &b"added"[..]).unwrap();
        assert_eq!(content.size(), (10 << 30) + 5);
        file.write_all_at(b"host", 4096).unwrap();
        let mut bytes = Vec::new();
        content.read(4096, 4, &mut bytes).unwrap();
        content.read(10 << 30, 9, &mut bytes).unwrap();
        assert_eq!(bytes, b"hostadded");
        file.set_len(0).unwrap();
        bytes.clear();
        content.read(4096, 4, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4]);
    }
}
