// SPDX-License-Identifier: GPL-2.0
//! Several vCPUs: states that none can begin with, and vCPUs that wait for each other, come and go. The domain has four.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicU8, AtomicUsize, Ordering::SeqCst};
use lguest_hostile_xen::error::{EEXIST, EFAULT, EINVAL, ENOENT};
use lguest_hostile_xen::{call, commit, entry, page, power_off, start_info, BAD_POINTERS, BASE};
use xen_abi::event_channel::{op, BindIpi, BindVcpu, Port};
use xen_abi::handover::SHIM;
use xen_abi::memory::{ext, MmuExtOp, DOMID_SELF};
use xen_abi::number::{EVENT_CHANNEL_OP, MMUEXT_OP, SCHED_OP, UPDATE_VA_MAPPING, VCPU_OP};
use xen_abi::vcpu::{
    sched, vcpu_op, GuestContext, RegisterVcpuInfo, SchedPoll, SharedInfo, IN_KERNEL,
};

entry!(main);

const VCPUS: usize = 4;
/// The page of the domain is mapped there.
const DOMAIN: u64 = 0xffff_c000_1000_0000;

fn main() -> ! {
    commit(&[
        ("numbers", numbers),
        ("states", states),
        ("begin-in-the-shim", begin_in_the_shim),
        ("poll", || wait_for_each_other(poll)),
        ("block", || wait_for_each_other(block)),
        ("ports-of-all", ports_of_all),
        ("off-and-on", off_and_on),
        ("flushes-of-all", flushes_of_all),
        ("all-off", all_off),
        ("exception-on-another", || start_all(|_| trap())),
        ("power-off-on-another", || start_all(|_| power_off())),
    ])
}

/// What each vCPU but the first does.
static WORK: AtomicUsize = AtomicUsize::new(0);
/// vCPUs that have done it.
static DONE: AtomicU32 = AtomicU32::new(0);

#[repr(align(16))]
struct Stack(#[allow(dead_code)] UnsafeCell<[u8; 16 * 1024]>);

// SAFETY: each is one vCPU's.
unsafe impl Sync for Stack {}

static STACKS: [Stack; VCPUS] = [const { Stack(UnsafeCell::new([0; 16 * 1024])) }; VCPUS];

global_asm!(
    r#"
    .pushsection .text.other_vcpu, "ax"
other_vcpu:
    xor %ebp, %ebp
    call other_main
    ud2
    .popsection
    "#,
    options(att_syntax)
);

extern "C" {
    fn other_vcpu();
}

#[no_mangle]
extern "C" fn other_main(id: u64) -> ! {
    // SAFETY: `start_all` alone stores there, and stores such a function.
    let work: fn(usize) = unsafe { core::mem::transmute(WORK.load(SeqCst)) };
    work(id as usize);
    DONE.fetch_add(1, SeqCst);
    loop {
        vcpu(vcpu_op::DOWN, id, 0);
    }
}

fn vcpu(command: u64, id: u64, argument: u64) -> i64 {
    call(VCPU_OP, &[command, id, argument])
}

/// A state that vCPU `id` can begin with.
fn context(id: usize) -> GuestContext {
    // SAFETY: it is numbers.
    let mut context: GuestContext = unsafe { MaybeUninit::zeroed().assume_init() };
    let cr3: u64;
    // SAFETY: reads a register: lg does the instruction.
    unsafe { asm!("mov {}, cr3", out(reg) cr3) };
    context.flags = IN_KERNEL;
    context.user_regs.rip = other_vcpu as usize as u64;
    context.user_regs.rsp = (&raw const STACKS[id]) as u64 + size_of::<Stack>() as u64;
    context.user_regs.rdi = id as u64;
    context.control[3] = cr3;
    context
}

fn initialise(id: u64, context: &GuestContext) -> i64 {
    vcpu(vcpu_op::INITIALISE, id, core::ptr::from_ref(context) as u64)
}

/// Turns on all others, when each has a state.
fn start() {
    for id in 1..VCPUS {
        assert_eq!(initialise(id as u64, &context(id)), 0);
    }
    for id in 1..VCPUS as u64 {
        assert_eq!(vcpu(vcpu_op::UP, id, 0), 0);
    }
}

/// Has all other vCPUs do `work`, at a time.
fn start_all(work: fn(usize)) {
    WORK.store(work as usize, SeqCst);
    start();
    while DONE.load(SeqCst) < VCPUS as u32 - 1 {
        spin_loop();
    }
}

fn trap() {
    // SAFETY: ends the Guest.
    unsafe { asm!("int3") }
}

fn numbers() {
    let context = context(1);
    let argument = (&raw const context) as u64;
    for id in [4, 31, 32, 33, 64, 1 << 32, (1 << 32) + 1, u64::MAX] {
        for command in 0..20 {
            assert_eq!(vcpu(command, id, argument), ENOENT, "{command} of {id}");
        }
        let mut bind = BindIpi {
            vcpu: id as u32,
            ..BindIpi::default()
        };
        let wanted = call(EVENT_CHANNEL_OP, &[op::BIND_IPI, (&raw mut bind) as u64]);
        assert_eq!(
            wanted,
            if id as u32 == 0 || id as u32 == 1 {
                0
            } else {
                ENOENT
            }
        );
    }
    assert_eq!(vcpu(vcpu_op::IS_UP, 0, 0), 1);
    for id in 1..VCPUS as u64 {
        assert_eq!(vcpu(vcpu_op::IS_UP, id, 0), 0);
        assert_eq!(
            vcpu(vcpu_op::UP, id, 0),
            EINVAL,
            "nobody has initialised it"
        );
        for command in [
            vcpu_op::DOWN,
            vcpu_op::SET_SINGLESHOT_TIMER,
            vcpu_op::STOP_SINGLESHOT_TIMER,
        ] {
            assert_eq!(vcpu(command, id, argument), EINVAL, "{command} of another");
        }
    }
    assert_eq!(vcpu(vcpu_op::UP, 0, 0), 0, "it is on");
    assert_eq!(initialise(0, &context), EEXIST, "it runs");
}

fn states() {
    for pointer in BAD_POINTERS {
        assert_eq!(
            vcpu(vcpu_op::INITIALISE, 1, pointer),
            EFAULT,
            "{pointer:#x}"
        );
    }
    let beyond = start_info().nr_pages;
    let spoil: [fn(&mut GuestContext, u64); 13] = [
        |context, _| context.flags = 0,
        |context, _| context.user_regs.rip = 1 << 47,
        |context, _| context.event_callback = 1 << 63,
        |context, _| context.failsafe_callback = 0xffff_7fff_ffff_ffff,
        |context, _| context.syscall_callback = 1 << 62,
        |context, _| context.traps[255].address = 1 << 47,
        |context, _| context.fs_base = 1 << 47,
        |context, _| context.gs_base_kernel = 1 << 63,
        |context, _| context.gs_base_user = 1 << 47,
        |context, _| context.control[3] += 8,
        |context, beyond| context.control[3] = beyond * 4096,
        |context, beyond| context.gdt_frames[0] = beyond,
        |context, _| context.gdt_ents = 513,
    ];
    for (n, spoil) in spoil.iter().enumerate() {
        let mut context = context(1);
        spoil(&mut context, beyond);
        assert_eq!(initialise(1, &context), EINVAL, "state {n}");
        assert_eq!(vcpu(vcpu_op::UP, 1, 0), EINVAL, "it has none");
    }
    start_all(|id| {
        for other in 0..VCPUS as u64 {
            assert_eq!(initialise(other, &context(id)), EEXIST);
        }
    });
}

/// The kernel could jump there by itself.
fn begin_in_the_shim() {
    for id in 1..VCPUS {
        let mut context = context(id);
        context.user_regs.rip = SHIM + 0x1000 * id as u64;
        assert_eq!(initialise(id as u64, &context), 0);
        assert_eq!(vcpu(vcpu_op::UP, id as u64, 0), 0);
    }
    for _ in 0..1_000_000 {
        spin_loop();
    }
}

/// What a vCPU shares with the hypervisor: bytes and words of [`INFOS`].
struct Info(u64);

impl Info {
    fn of(id: usize) -> Self {
        Self(INFOS[id].load(SeqCst))
    }

    fn byte(&self, n: u64) -> &'static AtomicU8 {
        // SAFETY: it is there for ever, and atomic for both sides.
        unsafe { &*((self.0 + n) as *const AtomicU8) }
    }

    fn selector(&self) -> &'static AtomicU64 {
        // SAFETY: as above.
        unsafe { &*((self.0 + 8) as *const AtomicU64) }
    }
}

static INFOS: [AtomicU64; VCPUS] = [const { AtomicU64::new(0) }; VCPUS];
/// The port by which each vCPU is called, and how often it was.
static PORTS: [AtomicU32; VCPUS] = [const { AtomicU32::new(0) }; VCPUS];

/// Word `n` of the domain's page.
fn domain(n: usize) -> &'static AtomicU64 {
    // SAFETY: it is mapped, and atomic for both sides.
    unsafe { &*(DOMAIN as *const AtomicU64).add(n) }
}

fn pending() -> &'static AtomicU64 {
    domain(core::mem::offset_of!(SharedInfo, evtchn_pending) / 8)
}

fn mask() -> &'static AtomicU64 {
    domain(core::mem::offset_of!(SharedInfo, evtchn_mask) / 8)
}

/// Maps the domain's page, and gives each vCPU an info of its own and a port.
fn set_up() {
    // SAFETY: an entry of our tables.
    unsafe { lguest_hostile_xen::entry(DOMAIN).write_volatile(0) };
    let entry = start_info().shared_info | 0x63;
    assert_eq!(call(UPDATE_VA_MAPPING, &[DOMAIN, entry, 0]), 0);
    for id in 0..VCPUS {
        let page = page();
        let wanted = RegisterVcpuInfo {
            mfn: page.frame(),
            ..RegisterVcpuInfo::default()
        };
        let register = |id| vcpu(vcpu_op::REGISTER_VCPU_INFO, id, (&raw const wanted) as u64);
        assert_eq!(register(id as u64), 0);
        assert_eq!(register(id as u64), EINVAL, "a second time");
        INFOS[id].store(page.gva(), SeqCst);
        PORTS[id].store(bind(id), SeqCst);
    }
}

fn bind(id: usize) -> u32 {
    let mut bind = BindIpi {
        vcpu: id as u32,
        ..BindIpi::default()
    };
    let result = call(EVENT_CHANNEL_OP, &[op::BIND_IPI, (&raw mut bind) as u64]);
    assert_eq!(result, 0);
    assert!(bind.port < 64, "it is in the first word");
    bind.port
}

fn port_op(command: u64, port: u32) {
    let argument = Port { port };
    let result = call(EVENT_CHANNEL_OP, &[command, (&raw const argument) as u64]);
    assert_eq!(result, 0, "{command} of port {port}");
}

/// Waits until the own port is pending, and takes it.
type Wait = fn(usize);

/// As who waits for a spinlock: the port is masked.
fn poll(id: usize) {
    let port = PORTS[id].load(SeqCst);
    let poll = SchedPoll {
        ports: (&raw const port) as u64,
        nr_ports: 1,
        ..SchedPoll::default()
    };
    while pending().fetch_and(!(1 << port), SeqCst) & (1 << port) == 0 {
        let result = call(SCHED_OP, &[sched::POLL, (&raw const poll) as u64]);
        assert_eq!(result, 0);
    }
}

/// As who has nothing to do. Nobody has registered a callback.
fn block(id: usize) {
    let (port, info) = (PORTS[id].load(SeqCst), Info::of(id));
    while pending().fetch_and(!(1 << port), SeqCst) & (1 << port) == 0 {
        assert_eq!(call(SCHED_OP, &[sched::BLOCK, 0]), 0);
        info.byte(1).store(1, SeqCst);
        info.byte(0).store(0, SeqCst);
        info.selector().store(0, SeqCst);
    }
}

/// A ball goes round, thousands of times: whoever has it calls the next one. Who sleeps through one call sleeps for ever.
fn wait_for_each_other(wait: Wait) {
    const ROUNDS: u32 = 3000;
    static WAIT: AtomicUsize = AtomicUsize::new(0);
    static BALL: AtomicU32 = AtomicU32::new(0);
    fn play(id: usize) {
        // SAFETY: `wait_for_each_other` alone stores there, and stores such a function.
        let wait: Wait = unsafe { core::mem::transmute(WAIT.load(SeqCst)) };
        for round in 0..ROUNDS {
            if (id, round) != (0, 0) {
                wait(id);
            }
            let wanted = if id == 0 {
                round * 4
            } else {
                round * 4 + id as u32
            };
            assert_eq!(BALL.swap(wanted + 1, SeqCst), wanted, "vCPU {id}");
            port_op(op::SEND, PORTS[(id + 1) % VCPUS].load(SeqCst));
        }
        if id == 0 {
            wait(id);
        }
    }
    set_up();
    mask().store(
        if wait as usize == poll as Wait as usize {
            !0
        } else {
            0
        },
        SeqCst,
    );
    WAIT.store(wait as usize, SeqCst);
    WORK.store(play as fn(usize) as usize, SeqCst);
    start();
    play(0);
    assert_eq!(BALL.load(SeqCst), ROUNDS * 4);
}

/// All bind, move, call, unmask and close, at a time: each port is one vCPU's.
fn ports_of_all() {
    static OWNERS: [AtomicU32; 64] = [const { AtomicU32::new(0) }; 64];
    fn play(id: usize) {
        for round in 0..2000 {
            let port = bind(id);
            let was = OWNERS[port as usize].swap(id as u32 + 1, SeqCst);
            assert_eq!(was, 0, "port {port} of vCPU {id}");
            let to = BindVcpu {
                port,
                vcpu: ((id + round) % VCPUS) as u32,
            };
            let moved = call(EVENT_CHANNEL_OP, &[op::BIND_VCPU, (&raw const to) as u64]);
            assert_eq!(moved, 0);
            port_op(op::SEND, port);
            port_op(op::UNMASK, port);
            OWNERS[port as usize].store(0, SeqCst);
            port_op(op::CLOSE, port);
        }
    }
    set_up();
    start_all(play);
}

/// Each turns itself off, and is turned on again where it was, with all its registers.
fn off_and_on() {
    const TIMES: u32 = 500;
    static TURNS: [AtomicU32; VCPUS] = [const { AtomicU32::new(0) }; VCPUS];
    fn play(id: usize) {
        for n in 0..TIMES {
            TURNS[id].store(n + 1, SeqCst);
            let (gs, off): (u64, i64);
            // SAFETY: the hypervisor keeps every register but RAX, RCX and R11; nobody here uses GS.
            unsafe {
                asm!("wrgsbase {mark}", "syscall", "rdgsbase {gs}",
                    mark = in(reg) 0x1000 + u64::from(n), gs = lateout(reg) gs,
                    inlateout("rax") u64::from(VCPU_OP) => off, in("rdi") vcpu_op::DOWN, in("rsi") id,
                    lateout("rcx") _, lateout("r11") _);
            }
            assert_eq!((off, gs), (0, 0x1000 + u64::from(n)), "vCPU {id}");
        }
        TURNS[id].store(TIMES + 1, SeqCst);
    }
    WORK.store(play as fn(usize) as usize, SeqCst);
    for id in 1..VCPUS {
        assert_eq!(initialise(id as u64, &context(id)), 0);
    }
    for n in 1..=TIMES + 1 {
        for (id, turns) in (1..).zip(&TURNS[1..]) {
            assert_eq!(vcpu(vcpu_op::UP, id, 0), 0);
            while turns.load(SeqCst) < n || n <= TIMES && vcpu(vcpu_op::IS_UP, id, 0) == 1 {
                spin_loop();
            }
            assert_eq!(turns.load(SeqCst), n);
        }
    }
}

/// All flush all, while each reads pages of its own.
fn flushes_of_all() {
    fn play(id: usize) {
        let sets = [1_u64 << id, 0, 0b1010, 0b1111, u64::MAX];
        let all = [
            ext::TLB_FLUSH_LOCAL,
            ext::INVLPG_LOCAL,
            ext::TLB_FLUSH_MULTI,
            ext::INVLPG_MULTI,
            ext::TLB_FLUSH_ALL,
            ext::INVLPG_ALL,
        ];
        for round in 0..300 {
            let operation = MmuExtOp {
                cmd: all[round % all.len()],
                arg1: BASE,
                arg2: (&raw const sets[round % sets.len()]) as u64,
                ..MmuExtOp::default()
            };
            let list = (&raw const operation) as u64;
            assert_eq!(call(MMUEXT_OP, &[list, 1, 0, DOMID_SELF]), 0);
        }
        let operation = MmuExtOp {
            cmd: ext::TLB_FLUSH_MULTI,
            arg2: BAD_POINTERS[0],
            ..MmuExtOp::default()
        };
        let list = (&raw const operation) as u64;
        assert_eq!(call(MMUEXT_OP, &[list, 1, 0, DOMID_SELF]), EFAULT);
    }
    start_all(play);
}

fn all_off() {
    start_all(|_| {});
    for id in 1..VCPUS as u64 {
        while vcpu(vcpu_op::IS_UP, id, 0) == 1 {
            spin_loop();
        }
    }
    vcpu(vcpu_op::DOWN, 0, 0);
}
