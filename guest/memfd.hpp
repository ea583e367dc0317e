// SPDX-License-Identifier: Apache-2.0
//
// Memfds: making sealed ones, and proving those of others.
//
// Thread: functions. Errors: ErrorKind::io from the system, ErrorKind::machine for a descriptor that will not do.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

namespace migrationd::guest {

// `length` bytes of zeros, sealed against changes of its length. `page_size` 4096, or 2097152 for huge pages.
Result<UniqueFd> make_memory(const std::string& name, std::uint64_t length, std::uint32_t page_size);

// Shared and writable.
Result<std::byte*> map_memory(int fd, std::uint64_t length, const std::string& name);

// That `fd` is a memfd of exactly `length` bytes that cannot shrink. Returns its page size.
Result<std::uint32_t> prove_memory(int fd, std::uint64_t length);

// That [address, address + length) is a shared, writable mapping of `fd` from its start on (/proc/self/maps).
Result<void> prove_mapping(const void* address, std::uint64_t length, int fd);

}  // namespace migrationd::guest
