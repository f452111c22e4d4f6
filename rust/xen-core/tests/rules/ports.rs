// SPDX-License-Identifier: GPL-2.0

use core::sync::atomic::{AtomicU64, AtomicU8, Ordering::SeqCst};
use xen_abi::event_channel::status;
use xen_abi::handover::{CONSOLE_PORT, PORTS, STORE_PORT};
use xen_abi::number::error::{EEXIST, EINVAL, ENOSPC};
use xen_core::ports::{Hears, Ports, Use, Words};

#[test]
fn xenstore_and_console_have_theirs() {
    let ports = Ports::new();
    for port in [STORE_PORT, CONSOLE_PORT] {
        assert_eq!(ports.get(port).unwrap().used, Use::Backend);
    }
    assert_eq!(ports.get(3).unwrap().used, Use::Free);
}

#[test]
fn numbers_that_are_none() {
    let mut ports = Ports::new();
    for port in [0, PORTS as u32, u32::MAX] {
        assert_eq!(ports.get(port), Err(EINVAL));
        assert_eq!(ports.close(port), Err(EINVAL));
        assert_eq!(ports.move_to(port, 0), Err(EINVAL));
    }
    assert_eq!(ports.close(3), Err(EINVAL), "nobody has it");
}

#[test]
fn an_interrupt_has_one_port() {
    let mut ports = Ports::new();
    let timer = ports.bind(Use::Virq(0), 0).unwrap();
    assert_eq!(ports.bind(Use::Virq(0), 0), Err(EEXIST));
    let other_vcpu = ports.bind(Use::Virq(0), 1).unwrap();
    assert_ne!(timer, other_vcpu);
    assert_eq!(ports.find(Use::Virq(0), 0), Some(timer));
    assert_eq!(ports.find(Use::Virq(1), 0), None);
    let pirq = ports.bind(Use::Pirq(16), 0).unwrap();
    assert_eq!(ports.bind(Use::Pirq(16), 1), Err(EEXIST));
    assert_eq!(ports.find(Use::Pirq(16), 1), Some(pirq));
    // Of the others there may be many.
    let first = ports.bind(Use::Ipi, 0).unwrap();
    assert_ne!(first, ports.bind(Use::Ipi, 0).unwrap());
}

#[test]
fn a_closed_port_is_given_out_again() {
    let mut ports = Ports::new();
    let port = ports.bind(Use::Virq(0), 0).unwrap();
    assert_eq!(ports.get(port).unwrap().used.status(), (status::VIRQ, 0));
    ports.close(port).unwrap();
    assert_eq!(ports.get(port).unwrap().used.status(), (status::CLOSED, 0));
    assert_eq!(ports.bind(Use::Ipi, 0), Ok(port));
}

#[test]
fn there_is_an_end_of_them() {
    let mut ports = Ports::new();
    for _ in 3..PORTS {
        ports.bind(Use::Ipi, 0).unwrap();
    }
    assert_eq!(ports.bind(Use::Ipi, 0), Err(ENOSPC));
}

struct Memory {
    pending: [AtomicU64; PORTS / 64],
    mask: [AtomicU64; PORTS / 64],
    selector: AtomicU64,
    upcall: AtomicU8,
}

impl Memory {
    fn new() -> Self {
        Self {
            pending: [const { AtomicU64::new(0) }; PORTS / 64],
            mask: [const { AtomicU64::new(0) }; PORTS / 64],
            selector: AtomicU64::new(0),
            upcall: AtomicU8::new(0),
        }
    }

    fn words(&self) -> Words<'_> {
        Words {
            pending: &self.pending,
            mask: &self.mask,
            selector: &self.selector,
            upcall: &self.upcall,
        }
    }

    fn state(&self) -> (u64, u8) {
        (self.selector.load(SeqCst), self.upcall.load(SeqCst))
    }
}

#[test]
fn raising_a_port_tells_the_vcpu() {
    let memory = Memory::new();
    memory.words().raise(4095);
    assert_eq!(memory.pending[63].load(SeqCst), 1 << 63);
    assert_eq!(memory.state(), (1 << 63, 1));
    assert!(memory.words().is_pending(4095) && !memory.words().is_pending(4094));
}

#[test]
fn a_pending_port_tells_nothing_new() {
    let memory = Memory::new();
    memory.words().raise(65);
    // The kernel has begun to look.
    memory.upcall.store(0, SeqCst);
    memory.selector.store(0, SeqCst);
    memory.words().raise(65);
    assert_eq!(memory.state(), (0, 0));
    memory.words().clear(65);
    memory.words().raise(65);
    assert_eq!(memory.state(), (2, 1));
}

#[test]
fn a_masked_port_waits_for_its_unmasking() {
    let memory = Memory::new();
    memory.mask[0].store(!0, SeqCst);
    memory.words().raise(5);
    assert_eq!(memory.state(), (0, 0));
    memory.words().unmask(6);
    assert_eq!(memory.state(), (0, 0));
    memory.words().unmask(5);
    assert_eq!(memory.state(), (1, 1));
    assert_eq!(memory.mask[0].load(SeqCst), !(3 << 5));
}

#[test]
fn who_hears_of_a_port() {
    let memory = Memory::new();
    let hears = |pollers, vcpu| Hears { pollers, vcpu };
    assert_eq!(memory.words().raise(5), hears(true, true));
    assert_eq!(memory.words().raise(5), hears(false, false));
    // Whoever raised the first has told the vCPU.
    assert_eq!(memory.words().raise(6), hears(true, false));
    memory.upcall.store(0, SeqCst);
    assert_eq!(memory.words().raise(7), hears(true, true));
    // A masked one is only polled for.
    memory.upcall.store(0, SeqCst);
    memory.mask[1].store(!0, SeqCst);
    assert_eq!(memory.words().raise(64), hears(true, false));
    assert_eq!(memory.words().unmask(65), hears(false, false));
    assert_eq!(memory.words().unmask(64), hears(false, true));
    assert_eq!(memory.words().unmask(64), hears(false, false));
}

#[test]
fn a_vcpu_that_moves_looks_at_all() {
    let memory = Memory::new();
    memory.words().select_all();
    assert_eq!(memory.state(), (!0, 1));
}
