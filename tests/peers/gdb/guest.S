# Where the debugged guest begins: each hart takes a stack of its own and calls main(hart).

.section .text.start, "ax"
.globl _start
_start:
    csrr a0, mhartid
    la sp, stacks
    addi t0, a0, 1
    slli t0, t0, 12
    add sp, sp, t0
    la t0, trapped
    csrw mtvec, t0
    li t0, 1 << 13              # FS = initial
    csrs mstatus, t0
    call main
1:  wfi
    j 1b

.balign 4
.globl trapped
trapped:
    csrr t0, mepc
    addi t0, t0, 4
    csrw mepc, t0
    mret

.section .bss
.balign 16
stacks: .skip 4 * 4096
