// SPDX-License-Identifier: GPL-2.0
/*
 * lg_nmi - sends NMIs to a CPU on which a Guest runs.
 *
 * echo 'CPU COUNT' >/sys/module/lg_nmi/parameters/storm
 *	sends them as fast as it can, then sees whether the CPU still takes one (ETIMEDOUT).
 * echo 'CPU COUNT' >/sys/module/lg_nmi/parameters/measure
 *	sends the next when one has arrived, at no particular moment; parameters/late then says how many
 *	came when the CPU had taken an interrupt that no handler knew of yet.  An NMI that waits for the
 *	Guest to be interrupted is one of these; else it takes a coincidence.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/random.h>
#include <linux/sched/signal.h>
#include <asm/apic.h>
#include <asm/nmi.h>

/* Between one that has arrived and the next: longer than it takes the Guest to run again. */
#define PAUSE_US	100
#define PATIENCE_S	30

static int target = -1;
static atomic_t taken;
static unsigned int late;
module_param(late, uint, 0444);

static bool interrupt_waits(void)
{
	int word;

	/* The one hard interrupt that is counted is this NMI. */
	if (hardirq_count() > HARDIRQ_OFFSET)
		return false;
	for (word = 0; word < 8; word++)
		if (apic->read(APIC_ISR + word * 0x10))
			return true;
	return false;
}

static int take_nmi(unsigned int type, struct pt_regs *regs)
{
	if (smp_processor_id() != READ_ONCE(target))
		return NMI_DONE;
	if (interrupt_waits())
		WRITE_ONCE(late, late + 1);
	atomic_inc(&taken);
	return NMI_HANDLED;
}

static int wait_for_another(int before)
{
	ktime_t deadline = ktime_add_ms(ktime_get(), PATIENCE_S * MSEC_PER_SEC);

	while (atomic_read(&taken) == before) {
		if (ktime_after(ktime_get(), deadline))
			return -ETIMEDOUT;
		if (fatal_signal_pending(current))
			return -EINTR;
		cpu_relax();
	}
	return 0;
}

static int send_and_wait(void)
{
	int before = atomic_read(&taken);

	apic->send_IPI(target, NMI_VECTOR);
	return wait_for_another(before);
}

static int parse(const char *text, unsigned int *count)
{
	unsigned int cpu;

	if (sscanf(text, "%u %u", &cpu, count) != 2 || cpu >= nr_cpu_ids || !cpu_online(cpu))
		return -EINVAL;
	WRITE_ONCE(target, cpu);
	return 0;
}

static int storm_set(const char *text, const struct kernel_param *param)
{
	unsigned int count, i;
	int error;

	cpus_read_lock();
	error = parse(text, &count);
	for (i = 0; !error && i < count; i++) {
		apic->send_IPI(target, NMI_VECTOR);
		/* One that is latched swallows those behind it: leave the Guest a moment in between. */
		if (!(i % 16))
			udelay(get_random_u32_below(PAUSE_US));
		if (fatal_signal_pending(current))
			error = -EINTR;
		cond_resched();
	}
	/* Twice: the first may be the last of the storm. */
	error = error ?: send_and_wait();
	error = error ?: send_and_wait();
	cpus_read_unlock();
	return error;
}

static int measure_set(const char *text, const struct kernel_param *param)
{
	unsigned int count, i;
	int error;

	cpus_read_lock();
	error = parse(text, &count);
	WRITE_ONCE(late, 0);
	for (i = 0; !error && i < count; i++) {
		udelay(get_random_u32_below(PAUSE_US));
		error = send_and_wait();
		cond_resched();
	}
	cpus_read_unlock();
	return error;
}

static const struct kernel_param_ops storm_ops = { .set = storm_set };
static const struct kernel_param_ops measure_ops = { .set = measure_set };

module_param_cb(storm, &storm_ops, NULL, 0200);
module_param_cb(measure, &measure_ops, NULL, 0200);

static int __init lg_nmi_init(void)
{
	return register_nmi_handler(NMI_LOCAL, take_nmi, 0, KBUILD_MODNAME);
}

static void __exit lg_nmi_exit(void)
{
	unregister_nmi_handler(NMI_LOCAL, KBUILD_MODNAME);
}

module_init(lg_nmi_init);
module_exit(lg_nmi_exit);

MODULE_DESCRIPTION("Sends NMIs to a CPU on which a guest of lg runs");
MODULE_LICENSE("GPL");
