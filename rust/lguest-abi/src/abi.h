/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads: the contract, and the boot_params of Linux that it refers to. */
#include <asm/bootparam.h>
#include "../../../include/uapi/linux/lguest.h"

/* bindgen does not evaluate _IOR() and its kin in a macro; in a constant, the C compiler does. */
static const unsigned long LGUEST_IOCTL_GET_INFO = LGUEST_GET_INFO;
static const unsigned long LGUEST_IOCTL_ADD_MEMORY = LGUEST_ADD_MEMORY;
static const unsigned long LGUEST_IOCTL_CREATE_VCPU = LGUEST_CREATE_VCPU;
static const unsigned long LGUEST_IOCTL_RUN = LGUEST_RUN;
static const unsigned long LGUEST_IOCTL_IRQ_LINE = LGUEST_IRQ_LINE;
static const unsigned long LGUEST_IOCTL_SET_NOTIFYFD = LGUEST_SET_NOTIFYFD;
static const unsigned long LGUEST_IOCTL_GET_STATS = LGUEST_GET_STATS;
static const unsigned long LGUEST_IOCTL_SET_DEBUG = LGUEST_SET_DEBUG;
static const unsigned long LGUEST_IOCTL_SET_TRACE = LGUEST_SET_TRACE;
static const unsigned long LGUEST_IOCTL_GET_WALK = LGUEST_GET_WALK;
static const unsigned long LGUEST_IOCTL_GET_VCPU_STATS = LGUEST_GET_VCPU_STATS;
static const unsigned long LGUEST_IOCTL_GET_EXIT = LGUEST_GET_EXIT;
