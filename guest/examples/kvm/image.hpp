// SPDX-License-Identifier: Apache-2.0
//
// What guest.S and the monitor agree on: how memory looks at the beginning, and what it must look like whenever the
// guest stands still.
#pragma once

#include "guest/examples/kvm/cpu_state.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

namespace kvm_guest {

constexpr std::uint64_t page_size = 4096;

// The guest's code at 0, and in the last word of each page but the first its address. Writes every page.
void write_image(std::byte* memory, std::uint64_t size);

struct Proof {
  std::uint32_t round = 0;  // in which the guest was stopped
  std::uint64_t pages = 0;  // that were compared
  std::string wrong;        // what is wrong; empty: nothing
};

// Reads every page and compares it with the processor's registers: pages before the one being worked on have this
// round's counter, those behind it the one before. For a guest at rest, all of whose memory has arrived.
Proof prove(const std::byte* memory, std::uint64_t size, const kvm_regs& regs);

}  // namespace kvm_guest
