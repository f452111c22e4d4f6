// SPDX-License-Identifier: GPL-2.0
//! The C functions that compiled Rust calls. In assembly, because a compiler may turn a loop that copies into a call of
//! memcpy.

use core::arch::global_asm;

global_asm!(
    r#"
    .pushsection .text.lguest_mem, "ax"
    .globl memcpy, memmove, memset, memcmp, bcmp, strlen
memmove:
    mov %rdi, %rax
    mov %rdi, %rcx
    sub %rsi, %rcx
    cmp %rdx, %rcx
    jae 1f
    /* The destination starts inside the source: from the end down. */
    mov %rdx, %rcx
    lea -1(%rdi, %rdx), %rdi
    lea -1(%rsi, %rdx), %rsi
    std
    rep movsb
    cld
    ret
memcpy:
    mov %rdi, %rax
1:  mov %rdx, %rcx
    shr $3, %rcx                /* words first: an emulated processor counts every step */
    rep movsq
    mov %edx, %ecx
    and $7, %ecx
    rep movsb
    ret
memset:
    mov %rdi, %r8
    movzbl %sil, %eax
    movabs $0x0101010101010101, %rcx
    imul %rcx, %rax
    mov %rdx, %rcx
    shr $3, %rcx
    rep stosq
    mov %edx, %ecx
    and $7, %ecx
    rep stosb
    mov %r8, %rax
    ret
memcmp:
bcmp:
    xor %eax, %eax
    mov %rdx, %rcx
    cmp %eax, %eax
    repe cmpsb
    je 1f
    movzbl -1(%rdi), %eax
    movzbl -1(%rsi), %ecx
    sub %ecx, %eax
1:  ret
strlen:
    xor %eax, %eax
    mov $-1, %rcx
    repne scasb
    mov $-2, %rax
    sub %rcx, %rax
    ret
    .popsection
    "#,
    options(att_syntax)
);
