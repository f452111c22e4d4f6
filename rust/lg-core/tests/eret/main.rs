// SPDX-License-Identifier: GPL-2.0

//! ERET's rule is written twice: in the switcher's assembly for the plain case, and in [`lg_core::eret`] for what
//! the assembly leaves to the Host. Here both judge the same frames. So is the rule of which SYSCALL is the monitor's
//! ([`lg_core::monitor`]), and here both judge the same addresses; and so is that of which page fault goes to the Guest
//! without the Host ([`lg_core::foresight`]), in [`fault`].
//!
//! The assembly is the module's own text, `rust/lg/sys/switcher.S`, executed from a region as a vCPU has one: text,
//! state, shared page. What needs CPL 0 is replaced. The two instructions that enter the Guest, and the first one of
//! the way to the Host that a program cannot execute, jump back to the test, which looks at what they would have
//! found. Loads of CR3 are taken out.

#![cfg(target_arch = "x86_64")]

mod call;
mod fault;
mod switcher;

use call::{Frame, Left, Way};
use lg_core::eret::{self, Mode};
use lg_core::{exit, flags, monitor};
use proptest::prelude::*;
use switcher::Switcher;

/// Numbers near everything that a rule may turn on, and any other.
pub(crate) fn word() -> impl Strategy<Value = u64> {
    let near = (0u32..64, -2i64..3).prop_map(|(bit, by)| (1u64 << bit).wrapping_add_signed(by));
    prop_oneof![
        near,
        any::<u64>(),
        (0u64..1 << 17).prop_map(|r| r << 47),
        Just(0)
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let cs = prop_oneof![
        8 => prop::sample::select(vec![eret::CS_KERNEL, eret::CS_USER64, eret::CS_USER32]),
        1 => word(),
        1 => 0u64..0x100,
    ];
    let addresses = (word(), word(), word(), word());
    let registers = (word(), word(), word());
    // What SYSRET can do: no TF and no RF, RCX and R11 as a system call left them, or nearly so.
    let sysret = (any::<bool>(), any::<bool>(), 0..3);
    (cs, addresses, registers, sysret).prop_map(|(cs, addresses, (rax, rcx, r11), sysret)| {
        let (rip, rflags, rsp, user_gs_base) = addresses;
        let (no_trap, same_rcx, which_r11) = sysret;
        let traps = if no_trap { flags::TF | flags::RF } else { 0 };
        let rflags = rflags & !traps;
        Frame {
            cs,
            rip,
            rflags,
            rsp,
            rax,
            rcx: if same_rcx { rip } else { rcx },
            r11: match which_r11 {
                0 => r11,
                1 => rflags,
                _ => flags::sanitize_user(rflags),
            },
            user_gs_base,
        }
    })
}

/// What the assembly must do itself; the rest it may leave to the Host, and has to where the rule says no.
fn plain(frame: &Frame) -> bool {
    frame.cs == eret::CS_KERNEL || frame.cs == eret::CS_USER64 && frame.rip >> 47 == 0
}

fn agree(switcher: &mut Switcher, frame: &Frame, waiting: bool) -> Result<(), TestCaseError> {
    let called = call::Call {
        rip: 0x1234_5678,
        rflags: 0x246,
        rsp: 0x7fff_0000,
    };
    let left = switcher.eret(frame, &called, waiting);
    let judged = eret::check(frame.cs, frame.rip, frame.rflags);
    match left.way {
        Way::Host => {
            prop_assert!(
                judged.is_err() || waiting || !plain(frame),
                "left to the Host: {left:x?}"
            );
            // The hypercall as any other, with nothing done.
            let untouched = Left {
                way: Way::Host,
                vector: exit::SYSCALL,
                rip: called.rip,
                rflags: called.rflags,
                rsp: called.rsp,
                rax: 0,
                ..call::KERNEL_MODE
            };
            prop_assert_eq!(left.without_scratch(), untouched);
        }
        Way::Iret | Way::Sysret => {
            let Ok(resume) = judged else {
                return Err(TestCaseError::fail(format!(
                    "resumed a bad frame: {left:x?}"
                )));
            };
            prop_assert!(!waiting, "an interrupt waits");
            let user = resume.mode != Mode::Kernel;
            let resumed = Left {
                way: left.way,
                vector: 0,
                rip: frame.rip,
                rflags: resume.rflags,
                rsp: frame.rsp,
                rax: frame.rax,
                rcx: frame.rcx,
                r11: frame.r11,
                cs: eret::CS_USER64,
                ss: eret::SS_USER,
                user_mode: user,
                irq_enabled: if resume.virtual_if { flags::IF } else { 0 },
                gs_base: if user {
                    ((frame.user_gs_base << 16) as i64 >> 16) as u64
                } else {
                    call::KERNEL_GS
                },
            };
            prop_assert_eq!(left, resumed);
            prop_assert!(left.way == Way::Iret || user, "SYSRET to guest kernel mode");
        }
    }
    Ok(())
}

#[test]
fn assembly_and_rust_judge_alike() {
    let mut switcher = Switcher::new();
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(30_000)
    };
    let mut ways = [0u32; 3];
    let strategy = (frame(), prop::bool::weighted(0.1));
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let cell = std::cell::RefCell::new((&mut switcher, &mut ways));
    runner
        .run(&strategy, |(frame, waiting)| {
            let (switcher, ways) = &mut *cell.borrow_mut();
            agree(switcher, &frame, waiting)?;
            ways[switcher.last_way() as usize] += 1;
            Ok(())
        })
        .unwrap();
    assert!(
        ways.iter().all(|&n| n > 300),
        "a way was hardly tried: {ways:?}"
    );
}

/// RIPs near the ends of the top-level slots around the monitor's, and any other.
fn rip() -> impl Strategy<Value = u64> {
    let ends = (250u64..275, any::<bool>(), -3i64..4).prop_map(|(slot, upper, by)| {
        let sign = if upper { 0xffff << 48 } else { 0 };
        (sign | (slot << 39)).wrapping_add_signed(by)
    });
    let inside = any::<u64>().prop_map(|n| (0xffff_8700 << 32) | (n >> 25));
    prop_oneof![ends, inside, word()]
}

#[test]
fn assembly_and_rust_send_the_same_calls_to_the_monitor() {
    let switcher = std::cell::RefCell::new(Switcher::new());
    let ways = std::cell::Cell::new([0u32; 2]);
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(20_000)
    };
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    runner
        .run(&(rip(), any::<u32>(), word()), |(rip, rflags, enabled)| {
            const ENTRY: u64 = 0xffff_8700_4000_0000;
            // At CPL 3 the real IF is on.
            let rflags = u64::from(rflags) | flags::IF;
            let call = call::Call {
                rip,
                rflags,
                rsp: 0x7fff_0000,
            };
            let (left, saved_rip, saved_rflags) =
                switcher.borrow_mut().monitored(ENTRY, enabled, &call);
            let mut counts = ways.get();
            counts[usize::from(monitor::is_hypercall(rip))] += 1;
            ways.set(counts);
            if monitor::is_hypercall(rip) {
                // With this frame, the Host's.
                prop_assert_eq!(left.way, Way::Host);
                prop_assert_eq!((left.rip, left.rflags, left.rsp), (rip, rflags, call.rsp));
                prop_assert_eq!(left.irq_enabled, enabled);
                return Ok(());
            }
            let arrived = Left {
                way: Way::Sysret,
                rip: ENTRY,
                rflags: flags::AT_EVENT_ENTRY,
                rsp: call.rsp,
                rcx: ENTRY,
                r11: flags::AT_EVENT_ENTRY,
                cs: eret::CS_USER64,
                ss: eret::SS_USER,
                irq_enabled: 0,
                ..call::KERNEL_MODE
            };
            prop_assert_eq!(left, arrived);
            prop_assert_eq!(saved_rip, rip);
            prop_assert_eq!(saved_rflags, (rflags & !flags::IF) | (enabled & flags::IF));
            Ok(())
        })
        .unwrap();
    assert!(
        ways.get().iter().all(|&n| n > 300),
        "a way was hardly tried: {:?}",
        ways.get()
    );
}
