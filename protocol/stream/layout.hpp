// SPDX-License-Identifier: Apache-2.0
//
// The migration stream on the wire: constants, and the byte layouts they belong to (docs/formats/stream.md).
//
//   stream        = header [configuration] element* EOF [description]
//   header        = u32 magic  u32 version
//   configuration = u8 07  u32 n  n bytes of machine name  subsection*
//   subsection    = u8 05  str8 name  u32 version  body
//   element       = command | section
//   section       = (START | FULL) u32 id  str8 name  u32 instance  u32 version  body  footer
//                 | (PART | END)   u32 id  body  footer
//   footer        = u8 7e  u32 id
//   command       = u8 08  u16 number  u16 length  payload
//   EOF           = u8 00
//   description   = u8 06  u32 length  JSON text
//
// Integers are big-endian and unaligned; str8 is a u8 length and that many bytes. There is no padding and no
// checksum anywhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace migrationd::stream {

inline constexpr std::uint32_t magic = 0x5145564d;  // "QEVM"
inline constexpr std::uint32_t version = 3;
inline constexpr std::uint32_t obsolete_version = 2;
inline constexpr std::size_t header_bytes = 8;

// First byte of everything between the header and the end.
namespace mark {
inline constexpr std::uint8_t eof = 0x00;
inline constexpr std::uint8_t section_start = 0x01;
inline constexpr std::uint8_t section_part = 0x02;
inline constexpr std::uint8_t section_end = 0x03;
inline constexpr std::uint8_t section_full = 0x04;
inline constexpr std::uint8_t subsection = 0x05;   // inside bodies only
inline constexpr std::uint8_t description = 0x06;  // after EOF only
inline constexpr std::uint8_t configuration = 0x07;
inline constexpr std::uint8_t command = 0x08;
inline constexpr std::uint8_t footer = 0x7e;
}  // namespace mark

inline constexpr std::size_t footer_bytes = 1 + 4;
inline constexpr std::size_t part_header_bytes = 1 + 4;
inline constexpr std::size_t command_header_bytes = 1 + 2 + 2;
inline constexpr std::size_t description_header_bytes = 1 + 4;
inline constexpr std::size_t return_path_header_bytes = 2 + 2;

// The type byte, id, name and the two numbers of a START or FULL section.
constexpr std::size_t section_header_bytes(std::size_t name_length) { return 1 + 4 + 1 + name_length + 4 + 4; }
static_assert(section_header_bytes(3) == 17, "START of 'ram' has 17 bytes before its body");

// --- the RAM section ---------------------------------------------------------------------------------------
inline constexpr char ram_section_name[] = "ram";
inline constexpr std::uint32_t ram_section_version = 4;

inline constexpr std::size_t page_bytes = 4096;

// Every record begins with a u64: flags in bits 0..11, a byte offset (multiple of 4096) above.
//
//   ZERO           word [str8 block] 00
//   PAGE           word [str8 block] 4096 bytes
//   XBZRLE         word [str8 block] 01  u16 n  n bytes
//   COMPRESS_PAGE  word [str8 block] u32 n  n bytes of zlib
//   MEM_SIZE       word (offset = total)  { str8 block  u64 used_length  [u64 page_size]  [u64 address] }*
//   EOS            word
//   MULTIFD_FLUSH  word
//
// The name is there exactly when CONTINUE is clear.
namespace ram_flag {
inline constexpr std::uint64_t zero = 0x002;
inline constexpr std::uint64_t mem_size = 0x004;
inline constexpr std::uint64_t page = 0x008;
inline constexpr std::uint64_t eos = 0x010;
inline constexpr std::uint64_t same_block = 0x020;  // CONTINUE
inline constexpr std::uint64_t xbzrle = 0x040;
inline constexpr std::uint64_t hook = 0x080;  // RDMA only
inline constexpr std::uint64_t compressed = 0x100;
inline constexpr std::uint64_t multifd_flush = 0x200;
inline constexpr std::uint64_t mask = page_bytes - 1;
}  // namespace ram_flag
static_assert(ram_flag::multifd_flush <= ram_flag::mask, "flags lie below the page offset");

inline constexpr std::size_t ram_word_bytes = 8;
inline constexpr std::size_t zero_record_bytes = ram_word_bytes + 1;  // with CONTINUE
static_assert(zero_record_bytes == 9);
// The longest record header: word, a name of 255 bytes, a length field of up to four bytes.
inline constexpr std::size_t ram_record_header_max = ram_word_bytes + 1 + 255 + 4;

inline constexpr std::uint8_t xbzrle_encoding = 0x01;
inline constexpr std::size_t xbzrle_max = page_bytes;
inline constexpr std::size_t compressed_max = 4110;  // zlib's compressBound(4096) as QEMU 7.2 uses it

// --- the rest ----------------------------------------------------------------------------------------------
inline constexpr std::size_t uuid_bytes = 16;
inline constexpr std::uint32_t default_target_page_bits = 12;
inline constexpr std::uint64_t received_bitmap_end = 0x0123456789abcdefULL;
// globalstate: u32 size of the name with its NUL, then a field of 100 bytes.
inline constexpr std::size_t globalstate_field_bytes = 100;
inline constexpr std::size_t globalstate_bytes = 4 + globalstate_field_bytes;

}  // namespace migrationd::stream
