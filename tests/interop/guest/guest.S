# SPDX-License-Identifier: Apache-2.0
#
# A guest of 512 bytes that notices by itself when a migration lost, repeated or delayed one of its pages.
#
# It is a boot sector: the firmware loads it to 0x7c00 and jumps to it in real mode. It goes to 32-bit protected mode
# without paging, programs the timer (100 Hz), and from then on sweeps over a range of memory for ever:
#
#   sweep s = 1, 2, 3, ...:
#     for every page p of the range:
#       the first word must be s-1 and the last word must be (s-1) xor p, or the guest reports it and stops sweeping
#       then both are set to s and s xor p
#     every `every` sweeps: print s as eight hexadecimal digits and a newline to the serial port
#     sleep (hlt) for `ticks` timer interrupts
#
# A stale page is found by the guest at the latest one sweep after it runs on, a lost timer or interrupt controller
# state shows as silence, and a guest that runs in two places prints a number twice. The numbers leave through the
# serial port without gap and without repetition, so the serial outputs of all hosts put one behind the other must be
# one exact sequence.
#
# The page number whose check failed is printed as `E<address> <found>`; nothing follows it.
#
# The five words at offset 4 are patched by guest.py. The words at 0x600 are for the test to read:
# +0 sweep number, +4 page being worked on, +8 0 or 'E'.

        .include "flat.inc"

        .set    SWEEP, 0x600
        .set    PAGE, 0x604
        .set    FAULT, 0x608
        .set    IDT, 0x1000
        .set    COM1, 0x3f8
        .set    TIMER_VECTOR, 0x20

        .code16
        .globl  _start
_start:
        jmp     real_mode
        .org    4
first:  .long   0x100000        # address of the range
pages:  .long   1024            # its length in pages; 0: an idle guest
fill:   .long   0               # that many pages from `first` get pseudo-random bytes before the first sweep
ticks:  .long   1               # timer interrupts to sleep after each sweep; 0: never sleep
every:  .long   1               # sweeps per printed line

real_mode:
        enter_flat_mode

        # The local interrupt controller passes the timer's interrupt through: firmware did that, unless it is bios.S.
        movl    $0x1ff, 0xfee000f0
        movl    $0x700, 0xfee00350

        # One gate: the timer. Everything else stays masked, an exception would be our own error (and a triple fault).
        movl    $IDT + TIMER_VECTOR * 8, %edi
        movl    $0x80000 + timer_low, (%edi)
        movl    $0x8e00, 4(%edi)
        lidtl   idt_pointer

        movl    $ports, %esi    # a table of (port, value)
        xorl    %edx, %edx
1:      lodsw
        movw    %ax, %dx
        lodsb
        outb    %al, %dx
        cmpl    $ports_end, %esi
        jb      1b

        # Bytes that neither look like zeros nor compress: a linear congruential generator, one word at a time.
        movl    first, %edi
        movl    fill, %ecx
        shll    $10, %ecx
        movl    $0x12345677, %eax
        jecxz   3f
2:      imull   $1664525, %eax, %eax
        addl    $1013904223, %eax
        stosl
        decl    %ecx
        jnz     2b
3:
        movl    first, %esi
        movl    pages, %ecx
        jecxz   5f
4:      movl    $0, (%esi)
        movl    %esi, 4092(%esi)
        addl    $4096, %esi
        loop    4b
5:      xorl    %edx, %edx      # edx: the sweep number
        movl    %edx, FAULT
        movl    every, %ebp     # ebp: sweeps until the next line
        sti

sweep:
        leal    1(%edx), %ebx
        movl    %ebx, SWEEP
        movl    first, %esi
        movl    pages, %ecx
        jecxz   swept
1:      movl    %esi, PAGE
        movl    %edx, %eax
        cmpl    %eax, (%esi)
        jne     fault
        xorl    %esi, %eax
        cmpl    %eax, 4092(%esi)
        jne     fault
        movl    %ebx, %eax
        movl    %eax, (%esi)
        xorl    %esi, %eax
        movl    %eax, 4092(%esi)
        addl    $4096, %esi
        loop    1b
swept:
        movl    %ebx, %edx
        decl    %ebp
        jnz     3f
        movl    every, %ebp
        call    print_hex
        movb    $'\n', %al
        call    print
3:      movl    ticks, %ecx
        jecxz   sweep
4:      hlt
        loop    4b
        jmp     sweep

fault:
        movb    $'E', %al
        movl    %eax, FAULT
        call    print
        movl    (%esi), %edi
        movl    %esi, %edx
        call    print_hex
        movb    $' ', %al
        call    print
        movl    %edi, %edx
        call    print_hex
        movb    $'\n', %al
        call    print
1:      hlt
        jmp     1b

# Prints edx in hexadecimal; keeps edx, uses eax and ecx.
print_hex:
        movl    $8, %ecx
1:      roll    $4, %edx
        movb    %dl, %al
        andb    $15, %al
        cmpb    $10, %al
        sbbb    $0x69, %al      # the classic: 0..15 to '0'..'9', 'A'..'F'
        das
        call    print
        loop    1b
        ret

# Prints the character in al; keeps all registers but eax.
print:
        pushl   %edx
        movb    %al, %ah
        movl    $COM1 + 5, %edx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movb    %ah, %al
        movl    $COM1, %edx
        outb    %al, %dx
        popl    %edx
        ret

timer:
        pushl   %eax
        movb    $0x20, %al
        outb    %al, $0x20
        popl    %eax
        iretl
        .set    timer_low, 0x7c00 + timer - _start

        .macro  set port, value
        .word   \port
        .byte   \value
        .endm
ports:
        set     0x20, 0x11      # first interrupt controller: vectors from 0x20, only the timer let through
        set     0x21, TIMER_VECTOR
        set     0x21, 0x04
        set     0x21, 0x01
        set     0x21, 0xfe
        set     0xa1, 0xff
        set     0x43, 0x34      # timer 0: rate generator, 1193182 Hz / 11932 = 100 Hz
        set     0x40, 0x9c
        set     0x40, 0x2e
        set     COM1 + 1, 0x00  # serial: no interrupts, 115200 baud, 8 bits, no parity
        set     COM1 + 3, 0x83
        set     COM1 + 0, 0x01
        set     COM1 + 1, 0x00
        set     COM1 + 3, 0x03
        set     COM1 + 2, 0x00
ports_end:

        .balign 4
gdt_pointer:
        .word   23
        .long   gdt
idt_pointer:
        .word   TIMER_VECTOR * 8 + 7
        .long   IDT
        flat_tables

        .org    510
        .word   0xaa55
