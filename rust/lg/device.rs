// SPDX-License-Identifier: GPL-2.0

//! /dev/lguest: one open file is one VM.

use crate::{
    abi::*,
    vm::Vm, //
};
use kernel::{
    fs::File,
    ioctl::{
        _IO,
        _IOR,
        _IOW,
        _IOWR, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    prelude::*,
    sync::Arc,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

const GET_INFO: u32 = _IOR::<lguest_info>(LGUEST_IOC, 0);
const ADD_MEMORY: u32 = _IOW::<lguest_memory>(LGUEST_IOC, 1);
const CREATE_VCPU: u32 = _IOW::<lguest_vcpu>(LGUEST_IOC, 2);
const RUN: u32 = _IOWR::<lguest_run>(LGUEST_IOC, 3);
const IRQ_LINE: u32 = _IO(LGUEST_IOC, 4);
const SET_NOTIFYFD: u32 = _IOW::<lguest_notifyfd>(LGUEST_IOC, 5);
const GET_STATS: u32 = _IOR::<lguest_stats>(LGUEST_IOC, 6);
const SET_DEBUG: u32 = _IOW::<lguest_debug>(LGUEST_IOC, 7);
const SET_TRACE: u32 = _IOW::<lguest_trace>(LGUEST_IOC, 8);
const GET_WALK: u32 = _IOWR::<lguest_walk>(LGUEST_IOC, 9);
const GET_VCPU_STATS: u32 = _IOWR::<lguest_vcpu_stats>(LGUEST_IOC, 10);
const GET_EXIT: u32 = _IOWR::<lguest_exit>(LGUEST_IOC, 11);

fn read<T: FromBytes>(arg: usize) -> Result<T> {
    UserSlice::new(UserPtr::from_addr(arg), core::mem::size_of::<T>())
        .reader()
        .read()
}

fn write<T: AsBytes>(arg: usize, value: &T) -> Result {
    UserSlice::new(UserPtr::from_addr(arg), core::mem::size_of::<T>())
        .writer()
        .write(value)
}

#[vtable]
impl MiscDevice for Vm {
    type Ptr = Arc<Vm>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Arc<Vm>> {
        Arc::pin_init(Vm::new()?, GFP_KERNEL_ACCOUNT)
    }

    fn mmap(
        vm: <Self::Ptr as kernel::types::ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        vma: &VmaNew,
    ) -> Result {
        vm.map(vma)
    }

    fn ioctl(
        vm: <Self::Ptr as kernel::types::ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        cmd: u32,
        arg: usize,
    ) -> Result<isize> {
        match cmd {
            GET_INFO => write(arg, &Vm::info())?,
            ADD_MEMORY => vm.add_memory(read(arg)?)?,
            CREATE_VCPU => vm.create_vcpu(&read(arg)?)?,
            RUN => {
                let mut run = read::<lguest_run>(arg)?;
                let result = vm.run(&mut run);
                // Also after EINTR: `set_regs` is 0 now, so that the registers are not loaded
                // twice.
                write(arg, &run)?;
                result?;
            }
            IRQ_LINE => vm.raise_line(arg)?,
            SET_NOTIFYFD => vm.set_notifyfd(read(arg)?)?,
            GET_STATS => write(arg, &vm.stats()?)?,
            SET_DEBUG => vm.set_debug(&read(arg)?)?,
            GET_WALK => {
                let mut walk = read(arg)?;
                vm.walk(&mut walk)?;
                write(arg, &walk)?;
            }
            GET_VCPU_STATS => {
                let mut stats = read(arg)?;
                vm.vcpu_stats(&mut stats)?;
                write(arg, &stats)?;
            }
            GET_EXIT => {
                let mut exit = read(arg)?;
                vm.exit(&mut exit)?;
                write(arg, &exit)?;
            }
            SET_TRACE => vm.set_trace(&read(arg)?)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}
