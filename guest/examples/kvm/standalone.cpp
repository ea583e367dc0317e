// SPDX-License-Identifier: Apache-2.0
#include "guest/examples/kvm/standalone.hpp"

#include "guest/examples/kvm/image.hpp"

#include <unistd.h>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace kvm_guest {
namespace {

// A stay's length in milliseconds goes through these by a step that has no factor with them: a stop at any moment.
constexpr unsigned stays = 101;
constexpr unsigned stay_step = 37;

int complain(const std::string& what) {
  std::fprintf(stderr, "kvm-guest: %s\n", what.c_str());
  return 1;
}

// Writes since the log was switched on, as the memory tells: without a bit, each of them would be lost.
std::size_t unlogged_pages(const Machine& machine, const std::vector<std::byte>& before,
                           const std::vector<unsigned char>& bitmap) {
  std::size_t missing = 0;
  for (std::uint64_t page = 0; page < machine.memory_size() / page_size; ++page) {
    const bool changed =
        std::memcmp(machine.memory() + page * page_size, before.data() + page * page_size, page_size) != 0;
    if (changed && (bitmap[page / 8] >> (page % 8) & 1) == 0) ++missing;
  }
  return missing;
}

// The time goes on while a processor moves; everything else is the same.
void forget_time(CpuRegisters& registers) {
  for (Msr& msr : registers.msrs)
    if (msr.index == 0x10) msr.value = 0;
}

// The registers of a resting machine, in the new one; what comes back out of it must be what went in.
std::string move(Machine& from, Machine& to) {
  if (!read_registers(*from.cpu())) return from.cpu()->error;
  const auto sent = std::make_unique<CpuRegisters>(from.cpu()->registers);
  to.cpu()->registers = *sent;
  *to.serial()->state() = *from.serial()->state();
  if (!write_registers(*to.cpu()) || !read_registers(*to.cpu())) return to.cpu()->error;
  forget_time(*sent);
  const auto arrived = std::make_unique<CpuRegisters>(to.cpu()->registers);
  forget_time(*arrived);
  return std::memcmp(sent.get(), arrived.get(), sizeof(*sent)) == 0 ? "" : "registers changed on their way";
}

// A stay in one VM, watched by the log. Empty: all right.
std::string live(Machine& machine, std::chrono::milliseconds stay, std::uint32_t& round) {
  std::vector<unsigned char> bitmap(machine.memory_size() / page_size / 8);
  if (!machine.log_writes(true)) return machine.error();
  const std::vector<std::byte> before(machine.memory(), machine.memory() + machine.memory_size());
  machine.run();
  std::this_thread::sleep_for(stay);
  machine.rest();
  if (!machine.fetch_log(bitmap.data()) || !machine.log_writes(false)) return machine.error();
  if (const std::size_t missing = unlogged_pages(machine, before, bitmap); missing != 0)
    return std::to_string(missing) + " written pages are not in the dirty log";
  if (!read_registers(*machine.cpu())) return machine.cpu()->error;
  const Proof proof = prove(machine.memory(), machine.memory_size(), machine.cpu()->registers.regs);
  round = proof.round;
  return proof.wrong;
}

}  // namespace

int prove_standalone(Machine& machine, unsigned seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  machine.rest();
  std::unique_ptr<Machine> next;
  Machine* current = &machine;
  unsigned moves = 0;
  std::uint32_t round = 0;
  while (std::chrono::steady_clock::now() < end) {
    const std::chrono::milliseconds stay(moves * stay_step % stays);
    if (const std::string wrong = live(*current, stay, round); !wrong.empty()) return complain(wrong);
    auto fresh = std::make_unique<Machine>(machine.memory(), machine.memory_size(), machine.serial()->file());
    if (!fresh->open()) return complain(fresh->error());
    if (const std::string wrong = move(*current, *fresh); !wrong.empty()) return complain(wrong);
    next = std::move(fresh);
    current = next.get();
    ++moves;
  }
  std::printf("round %u, moved %u times, every page right\n", round, moves);
  return round > 0 && moves > 0 ? 0 : complain("the guest did not run");
}

}  // namespace kvm_guest
