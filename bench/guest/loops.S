# A guest that times plain loops under paging: M-mode builds Sv39 tables of 4 KiB pages, enters S-mode, and bench/guest/main.c goes
# on there. Each loop does a0 rounds; main.c knows how many instructions a round is.

.equ UART, 0x10000000
.equ PTE_RWXAD, 0xcf        # V R W X A D

.section .text.start, "ax"
.globl _start
_start:
    csrr t0, mhartid
    bnez t0, park
    la sp, stack_top
    la t0, trapped
    csrw mtvec, t0
    # PMP: S-mode may do everything.
    li t0, -1
    csrw pmpaddr0, t0
    li t0, 0x1f
    csrw pmpcfg0, t0
    li t0, 7
    csrw mcounteren, t0

    # RAM: 2 MiB at 0x80000000 in pages of 4 KiB.
    la t0, ram_pages
    li t1, 0x80000000 >> 2 | PTE_RWXAD
    li t2, 512
1:  sd t1, 0(t0)
    addi t0, t0, 8
    addi t1, t1, 0x400
    addi t2, t2, -1
    bnez t2, 1b
    la t0, ram_pages
    srli t0, t0, 2
    ori t0, t0, 1
    la t1, ram_directory
    sd t0, 0(t1)
    srli t1, t1, 2
    ori t1, t1, 1
    la t2, root
    sd t1, 2*8(t2)
    # Devices: the first gigabyte as one page.
    li t0, PTE_RWXAD
    sd t0, 0(t2)
    srli t2, t2, 12
    li t0, 8 << 60
    or t2, t2, t0
    csrw satp, t2
    sfence.vma

    li t0, 3 << 11 | 3 << 13
    csrc mstatus, t0
    li t0, 1 << 11 | 1 << 13    # MPP = S, FS = initial
    csrs mstatus, t0
    la t0, main
    csrw mepc, t0
    mret

trapped:                        # says T and ends with a failure
    li t0, UART
    li t1, 'T'
    sb t1, 0(t0)
    li t0, 0x100000
    li t1, 1 << 16 | 0x3333
    sw t1, 0(t0)
park:
    wfi
    j park

.text
.balign 64
.globl loop_alu                 # 12 a round
loop_alu:
    li a1, 0x1234567
    li a2, 0x89abcdef
    li a3, 77
1:  add a1, a1, a2
    xor a2, a2, a1
    slli a4, a1, 13
    srli a5, a2, 7
    or a3, a4, a5
    sub a1, a1, a3
    and a4, a2, a3
    addi a2, a4, 77
    sltu a5, a1, a2
    addw a3, a3, a5
    addi a0, a0, -1
    bnez a0, 1b
    ret

.balign 64
.globl loop_memory              # 8 a round: a load and a store that walk over four pages
loop_memory:
    la a1, buffer
    li a2, 0
    li a3, 0x3ff8
1:  add a4, a1, a2
    ld a5, 0(a4)
    addi a5, a5, 1
    sd a5, 8(a4)
    addi a2, a2, 136
    and a2, a2, a3
    addi a0, a0, -1
    bnez a0, 1b
    ret

.balign 64
.globl loop_branch              # 12 a round: the way depends on data
loop_branch:
    li a1, 88172645463325252
1:  slli a2, a1, 13
    xor a1, a1, a2
    srli a2, a1, 7
    xor a1, a1, a2
    slli a2, a1, 17
    xor a1, a1, a2
    andi a2, a1, 1
    beqz a2, 2f
    addi a3, a3, 1
    j 3f
2:  addi a4, a4, 1
    nop
3:  addi a0, a0, -1
    bnez a0, 1b
    ret

.balign 64
.globl loop_call                # 6 a round: call, ret
loop_call:
    mv a6, ra
1:  call leaf
    add a1, a1, a2
    addi a0, a0, -1
    bnez a0, 1b
    mv ra, a6
    ret
.balign 4
leaf:
    addi a2, a2, 1
    ret

.balign 64
.globl loop_double              # 6 a round: double-precision add, mul and fused multiply-add
loop_double:
    li a1, 3
    fcvt.d.l fa0, a1
    li a1, 7
    fcvt.d.l fa1, a1
    fdiv.d fa2, fa0, fa1
    fmv.d fa3, fa2
1:  fadd.d fa3, fa3, fa1
    fmul.d fa3, fa3, fa2
    fmadd.d fa4, fa3, fa2, fa0
    fsub.d fa3, fa3, fa4
    addi a0, a0, -1
    bnez a0, 1b
    ret

.balign 64
.globl loop_shadow              # a round: one read of the UART's line status, which has no side effect
loop_shadow:
    li a1, UART
1:  lbu a2, 5(a1)
    addi a0, a0, -1
    bnez a0, 1b
    ret

.balign 64
.globl loop_sync                # a round: one read of the clock, which only the device can answer
loop_sync:
    li a1, 0x101000
1:  lw a2, 0(a1)
    addi a0, a0, -1
    bnez a0, 1b
    ret

.bss
.balign 4096
root: .space 4096
ram_directory: .space 4096
ram_pages: .space 4096
buffer: .space 5 * 4096
stack: .space 4096
stack_top:
