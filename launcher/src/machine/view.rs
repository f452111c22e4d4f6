// SPDX-License-Identifier: GPL-2.0
//! A machine that runs, as others see it: what a [`Query`] asks of it.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::path::{self, PathBuf};
use std::sync::Arc;

use lg_core::addr::{Gpa, Gva};
use lg_core::paging::{self, Access};
use lguest_abi::lguest_regs;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};
use vm_memory::{Bytes, GuestAddress};

use crate::image::Image;
use crate::machine::gdb::memory::Tables;
use crate::machine::module::Vm;
use crate::machine::pagetable::PageTable;
use crate::machine::pause::Pause;
use crate::machine::recorder::Tail;
use crate::memory::Memory;
use crate::queries::Query;
use crate::report::stats;
use crate::trace::file::Trace;

/// Why there is no answer.
const CANNOT_STOP: &str = "the guest's vCPU cannot be stopped";

/// What can be seen of a machine while it runs, and afterwards.
#[derive(Clone)]
pub struct View {
    pub(super) vm: Arc<Vm>,
    /// Of each vCPU, in the order of their numbers.
    pub(super) pauses: Vec<Arc<Pause>>,
    pub(super) memory: Memory,
    pub(super) kernel: Kernel,
    pub(super) tail: Option<Tail>,
}

/// The kernel that runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// Its file.
    pub path: PathBuf,
    /// Its build ID in hexadecimal, if it has one.
    pub build_id: Option<String>,
}

impl Kernel {
    /// A build ID as it is written here.
    pub fn id(build_id: Option<Vec<u8>>) -> Option<String> {
        let mut text = String::new();
        for byte in build_id? {
            let _ = write!(text, "{byte:02x}");
        }
        Some(text)
    }

    /// That of `image`.
    pub(super) fn of(image: &Image) -> Self {
        Self {
            path: path::absolute(&image.path).unwrap_or(image.path.clone()),
            build_id: Self::id(image.build_id()),
        }
    }
}

impl View {
    /// The answer to a question; why there is none otherwise. The Guest stands still meanwhile.
    pub fn answer(&self, query: &Query) -> Result<Value, String> {
        match *query {
            Query::Stats => {
                let mut stats = None;
                if !all(&self.pauses, &mut || stats = Some(self.vm.stats())) {
                    return Err(CANNOT_STOP.into());
                }
                let stats = stats.ok_or(CANNOT_STOP)?;
                let stats = stats.map_err(|error| error.to_string())?;
                let counters = stats::counters(&stats).into_iter();
                let counters = counters.map(|(name, value)| (name, json!(value)));
                Ok(counters.collect::<Map<_, _>>().into())
            }
            Query::Kernel => Ok(json!(self.kernel)),
            Query::Walk { gva, vcpu } => self.walk(vcpu, gva).map(|table| json!(table)),
        }
    }

    /// An address in the tables that the first vCPU is on.
    ///
    /// # Errors
    ///
    /// In words: the vCPU cannot be stopped.
    pub fn page_table(&self, gva: u64) -> Result<PageTable, String> {
        self.walk(0, gva)
    }

    fn walk(&self, vcpu: u32, gva: u64) -> Result<PageTable, String> {
        let Some(pause) = self.pauses.get(vcpu as usize) else {
            return Err(format!("the guest has no vCPU {vcpu}"));
        };
        let table = pause.look(|regs| page_table(&self.vm, vcpu, &self.memory, regs.cr3, gva));
        table.ok_or_else(|| CANNOT_STOP.into())
    }

    /// The registers at the last exit of the first vCPU.
    pub fn regs(&self) -> Option<lguest_regs> {
        self.pauses.first()?.look(|regs| *regs)
    }

    /// The eight bytes at `gva` in the tables at `cr3`, whoever may use them there.
    pub fn read(&self, cr3: u64, gva: u64) -> Option<u64> {
        let root = Gpa::new(cr3 & paging::ADDR);
        let byte = |at: u64| {
            let gva = Gva::new(gva.wrapping_add(at));
            let tables = Tables(&self.memory);
            let page = paging::walk_quiet(&tables, root, gva, Access::default()).ok()?;
            let at = GuestAddress(page.gpa.get() | gva.offset());
            self.memory.read_obj::<u8>(at).ok()
        };
        let mut bytes = [0; 8];
        for (at, place) in (0..).zip(&mut bytes) {
            *place = byte(at)?;
        }
        Some(u64::from_le_bytes(bytes))
    }

    /// The kernel that runs.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The end of the record of the vCPU, if there was one, once it is over.
    pub fn record(&self) -> Option<&Trace> {
        self.tail.as_ref()?.get()
    }
}

/// Calls `look` while all of these stand still, one inside of the other; `false` if one does not.
fn all(pauses: &[Arc<Pause>], look: &mut dyn FnMut()) -> bool {
    match pauses.split_first() {
        None => {
            look();
            true
        }
        Some((first, rest)) => first.look(|_| all(rest, look)).unwrap_or(false),
    }
}

/// What `gva` is in the tables at `cr3` and in the shadow of `vm` on `vcpu`, which does not run.
pub fn page_table(vm: &Vm, vcpu: u32, memory: &Memory, cr3: u64, gva: u64) -> PageTable {
    let table = PageTable::look(&Tables(memory), cr3, gva);
    match vm.ways(vcpu, gva) {
        Ok((ways, levels)) => table.beside(ways, levels),
        // Without a vCPU there is none.
        Err(_) => table,
    }
}
