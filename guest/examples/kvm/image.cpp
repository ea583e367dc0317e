// SPDX-License-Identifier: Apache-2.0
#include "guest/examples/kvm/image.hpp"

#include <cstdio>
#include <cstring>

// guest.S
extern "C" {
extern const std::byte kvm_guest_begin[];
extern const std::byte kvm_guest_end[];
}

namespace kvm_guest {
namespace {

constexpr std::uint64_t last_word = page_size - 4;
constexpr std::uint64_t first_counter = 0x600;

std::uint32_t word_at(const std::byte* memory, std::uint64_t address) {
  std::uint32_t word = 0;
  std::memcpy(&word, memory + address, sizeof(word));
  return word;
}

}  // namespace

void write_image(std::byte* memory, std::uint64_t size) {
  std::memset(memory, 0, size);
  std::memcpy(memory, kvm_guest_begin, static_cast<std::size_t>(kvm_guest_end - kvm_guest_begin));
  for (std::uint64_t page = page_size; page < size; page += page_size) {
    const auto address = static_cast<std::uint32_t>(page);
    std::memcpy(memory + page + last_word, &address, sizeof(address));
  }
}

Proof prove(const std::byte* memory, std::uint64_t size, const kvm_regs& regs) {
  Proof proof;
  proof.round = static_cast<std::uint32_t>(regs.rbp);
  const std::uint64_t current = regs.rsi;  // `size` between the rounds: then all pages are of one round
  const std::uint32_t before = proof.round - 1;
  const auto say = [&](std::uint64_t address, std::uint32_t first, std::uint32_t last) {
    char text[160];
    std::snprintf(text, sizeof(text), "page 0x%llx has the counters %u and %u in round %u, which is at 0x%llx",
                  static_cast<unsigned long long>(address), first, last, proof.round,
                  static_cast<unsigned long long>(current));
    proof.wrong = text;
  };
  const std::uint32_t counter = word_at(memory, first_counter);
  if (counter != proof.round && counter != before) say(0, counter, counter);
  // Between `incl` and the next instruction a whole memory is one round behind.
  const std::uint32_t done = current == size && word_at(memory, page_size) == before ? before : proof.round;
  for (std::uint64_t page = page_size; page < size && proof.wrong.empty(); page += page_size, ++proof.pages) {
    const std::uint32_t first = word_at(memory, page);
    const std::uint32_t last = word_at(memory, page + last_word) ^ static_cast<std::uint32_t>(page);
    const bool old = first == before && last == before;
    const bool half = first == proof.round && last == before;
    const bool right = page < current   ? first == done && last == done
                       : page > current ? old
                                        : old || half || (first == proof.round && last == proof.round);
    if (!right) say(page, first, last);
  }
  return proof;
}

}  // namespace kvm_guest
