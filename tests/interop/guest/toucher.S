# SPDX-License-Identifier: Apache-2.0
#
# A guest of 512 bytes that measures how long it waits for its memory.
#
# It is a boot sector like guest.S, without interrupts. It fills a range of pages with words of their own, prints R, and
# from then on reads one page after another for ever, in an order that comes to each of them once in a round and never
# to the next in line. The clock (rdtsc) is read before and behind each read, and the difference is counted in a
# histogram of four buckets to a power of two. Reading makes nothing dirty: a move under postcopy meets every page that
# the precopy pass did not bring.
#
# A page that holds another word than its own is printed as E, and nothing follows.
#
# The two words at offset 4 are patched by toucher.py. For the test to read:
# 0x610 the clock at the last read, 8 bytes; 0x618 reads, modulo 2^32; 0x2000 the histogram, 128 words.

        .include "flat.inc"

        .set    CLOCK, 0x610
        .set    READS, 0x618
        .set    HISTOGRAM, 0x2000
        .set    MARK, 0x5a5aa5a5
        .set    COM1, 0x3f8

        .code16
        .globl  _start
_start:
        jmp     real_mode
        .org    4
first:  .long   0x100000        # address of the range
pages:  .long   1024            # its length in pages, a power of two

real_mode:
        enter_flat_mode

        movl    $HISTOGRAM, %edi
        xorl    %eax, %eax
        movl    %eax, READS
        movl    $128, %ecx
        rep stosl

        movl    first, %edi     # page n is full of n xor MARK
        xorl    %ebx, %ebx
1:      movl    %ebx, %eax
        xorl    $MARK, %eax
        movl    $1024, %ecx
        rep stosl
        incl    %ebx
        cmpl    pages, %ebx
        jb      1b

        movb    $'R', %al
        call    print
        xorl    %ebx, %ebx
touch:
        imull   $1664525, %ebx, %ebx    # a full period modulo any power of two
        addl    $1013904223, %ebx
        movl    pages, %eax
        decl    %eax
        andl    %eax, %ebx
        movl    %ebx, %esi
        shll    $12, %esi
        addl    first, %esi
        movl    %ebx, %edi
        xorl    $MARK, %edi
        rdtsc
        movl    %eax, %ebp
        movl    %edx, %ecx
        cmpl    %edi, (%esi)
        jne     fault
        rdtsc
        movl    %eax, CLOCK
        movl    %edx, CLOCK + 4
        subl    %ebp, %eax
        sbbl    %ecx, %edx
        jz      2f
        movl    $-1, %eax               # 2^32 or more: the last bucket
2:      orl     $4, %eax
        bsrl    %eax, %ecx              # 2 to 31
        subl    $2, %ecx
        shrl    %cl, %eax               # 4 to 7
        leal    -4(%eax,%ecx,4), %eax
        incl    HISTOGRAM(,%eax,4)
        incl    READS
        jmp     touch

fault:
        movb    $'E', %al
        call    print
1:      jmp     1b

print:
        movb    %al, %ah
        movl    $COM1 + 5, %edx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movb    %ah, %al
        movl    $COM1, %edx
        outb    %al, %dx
        ret

        .balign 4
gdt_pointer:
        .word   23
        .long   gdt
        flat_tables

        .org    510
        .word   0xaa55
