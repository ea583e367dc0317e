# SPDX-License-Identifier: Apache-2.0
#
# The last 256 bytes of a firmware image of ours, for recordings that shall contain no other firmware: copies the boot
# sector, which guest.py puts at the beginning of the 64 KiB image (0xf0000), to 0x7c00 and jumps to it.

        .code16
        .globl  _start
_start:
        cld
        movw    $0xf000, %ax
        movw    %ax, %ds
        xorw    %ax, %ax
        movw    %ax, %es
        movw    %ax, %ss
        movw    %ax, %si
        movw    $0x7c00, %di
        movw    $256, %cx
        rep movsw
        ljmpw   $0, $0x7c00

        .org    0xf0            # where the processor begins: 0xffff0
        ljmpw   $0xf000, $0xff00
        .org    0x100
