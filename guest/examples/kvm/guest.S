# SPDX-License-Identifier: Apache-2.0
#
# The guest: code of ours for a processor in real mode, which notices by itself when a migration lost, repeated or
# delayed one of its pages or a part of its processor.
#
# The monitor puts it at address 0, with flat segments of 4 GiB, the size of the memory in ebx, and in the last word of
# every page but the first that page's address. From then on:
#
#   round r = 1, 2, 3, ...:
#     debug register 0 and an MSR (SYSENTER_EIP) must hold r-1; both are set to r
#     for every page p behind the first:
#       the first word must be r-1 and the last word (r-1) xor p; both are set for r
#     r is printed on the serial port, as eight hexadecimal digits and a newline
#     hlt: the monitor lets it rest for a moment
#
# What it finds wrong it prints as `E<address> <found>` (address 0: the processor), and nothing follows.
#
# ebp is the round and esi the page being worked on, the memory's size between the last page and the next round: from
# these two the monitor proves the memory of a guest at rest (image.hpp). The word at 0x600 is the first page's counter.

        .section .rodata
        .globl  kvm_guest_begin, kvm_guest_end
        .set    COUNTER, 0x600
        .set    STACK, 0x1000
        .set    FIRST, 0x1000
        .set    COM1, 0x3f8
        .set    SYSENTER_EIP, 0x176

        # Only jumps that are relative and addresses that are numbers: so it may be linked anywhere.
        .code16
kvm_guest_begin:
        cli
        cld
        movl    $STACK, %esp
        xorl    %ebp, %ebp
        movl    %ebx, %esi
round:
        incl    %ebp
        movl    $FIRST, %esi
        movl    %ebp, %edi
        decl    %edi                    # edi: the round before
        movl    %dr0, %eax
        cmpl    %edi, %eax
        jne     wrong_processor
        movl    %ebp, %dr0
        movl    $SYSENTER_EIP, %ecx
        rdmsr
        cmpl    %edi, %eax
        jne     wrong_processor
        movl    %ebp, %eax
        xorl    %edx, %edx
        wrmsr
        addr32 movl %ebp, COUNTER

page:
        addr32 movl (%esi), %eax
        cmpl    %edi, %eax
        jne     wrong_page
        addr32 movl 4092(%esi), %eax
        xorl    %esi, %eax
        cmpl    %edi, %eax
        jne     wrong_page
        addr32 movl %ebp, (%esi)
        movl    %ebp, %eax
        xorl    %esi, %eax
        addr32 movl %eax, 4092(%esi)
        addl    $4096, %esi
        cmpl    %ebx, %esi
        jb      page

        movl    %ebp, %edi
        call    print_hex
        movb    $'\n', %al
        call    print
        hlt
        jmp     round

wrong_processor:
        xorl    %esi, %esi
wrong_page:
        movl    %eax, %ebx
        movb    $'E', %al
        call    print
        movl    %esi, %edi
        call    print_hex
        movb    $' ', %al
        call    print
        movl    %ebx, %edi
        call    print_hex
        movb    $'\n', %al
        call    print
1:      hlt
        jmp     1b

# Prints edi in hexadecimal; uses eax, cx and dx.
print_hex:
        movw    $8, %cx
1:      roll    $4, %edi
        movw    %di, %ax
        andb    $15, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     2f
        addb    $'A' - '9' - 1, %al
2:      call    print
        decw    %cx
        jnz     1b
        ret

# Prints the character in al as a program does that knows serial ports: it waits until the port takes one.
print:
        movb    %al, %ah
        movw    $COM1 + 5, %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movb    %ah, %al
        movw    $COM1, %dx
        outb    %al, %dx
        ret

        .org    kvm_guest_begin + COUNTER
kvm_guest_end:

        .section .note.GNU-stack, "", %progbits
