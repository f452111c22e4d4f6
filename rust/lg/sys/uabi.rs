// SPDX-License-Identifier: GPL-2.0

//! This module says which structures of the contract may be copied from and to the Launcher byte by
//! byte.

use crate::abi::*;
use kernel::transmute::{
    AsBytes,
    FromBytes, //
};

macro_rules! plain {
    ($($t:ty),*) => {$(
        // SAFETY: Made of integers alone, so every bit pattern is a value.
        unsafe impl FromBytes for $t {}
        // SAFETY: Made of integers alone, without padding, and without anything behind a `&`.
        unsafe impl AsBytes for $t {}
    )*};
}

plain!(
    lguest_info,
    lguest_memory,
    lguest_vcpu,
    lguest_notifyfd,
    lguest_debug,
    lguest_trace,
    lguest_walk,
    lguest_run,
    lguest_stats,
    lguest_vcpu_stats,
    lguest_exit
);

/// The part of an exit besides its number.
impl lguest_run {
    pub(crate) fn mmio(&mut self) -> &mut lguest_run__bindgen_ty_1__bindgen_ty_1 {
        // SAFETY: Every variant of the union is made of integers.
        unsafe { &mut self.__bindgen_anon_1.mmio }
    }

    pub(crate) fn notify(&mut self) -> &mut lguest_run__bindgen_ty_1__bindgen_ty_2 {
        // SAFETY: As above.
        unsafe { &mut self.__bindgen_anon_1.notify }
    }

    pub(crate) fn console(&mut self) -> &mut lguest_run__bindgen_ty_1__bindgen_ty_3 {
        // SAFETY: As above.
        unsafe { &mut self.__bindgen_anon_1.console }
    }

    pub(crate) fn shutdown(&mut self) -> &mut lguest_run__bindgen_ty_1__bindgen_ty_4 {
        // SAFETY: As above.
        unsafe { &mut self.__bindgen_anon_1.shutdown }
    }

    pub(crate) fn death(&mut self) -> &mut lguest_run__bindgen_ty_1__bindgen_ty_5 {
        // SAFETY: As above.
        unsafe { &mut self.__bindgen_anon_1.death }
    }

    pub(crate) fn debug(&mut self) -> &mut lguest_run__bindgen_ty_1__bindgen_ty_6 {
        // SAFETY: As above.
        unsafe { &mut self.__bindgen_anon_1.debug }
    }
}
