// SPDX-License-Identifier: Apache-2.0
//
// A serial port as a described device: as much of a 16550 as a guest needs that prints. What the guest sends is
// gathered in the port until a newline, and a line begun here is finished by the monitor to which the guest moved: so
// every line is written whole, by one monitor. Its number is state of the port and moves with it.
//
// A line in the file: `NUMBER SECONDS.NANOSECONDS TEXT`, the time being CLOCK_MONOTONIC. Remarks of the monitor's:
// `# SECONDS.NANOSECONDS TEXT`.
//
// Threads: write() and read() in the processor's thread; the state by others only while it rests; note() by any.
#pragma once

#include "guest/migrationd_guest.h"

#include <cstddef>
#include <cstdint>

namespace kvm_guest {

constexpr std::uint16_t serial_base = 0x3f8;
constexpr std::uint16_t serial_ports = 8;

struct SerialState {
  std::uint8_t scratch;
  std::uint8_t interrupt_enable;
  std::uint8_t line_control;
  std::uint8_t modem_control;
  std::uint16_t divisor;
  std::uint64_t lines;  // written, in all monitors together
  std::uint32_t length;
  std::uint8_t line[128];
};

extern const md_device serial_device;

class Serial {
 public:
  // `file`: where lines go, appended; the caller's.
  explicit Serial(int file) noexcept : file_(file) {}

  SerialState* state() noexcept { return &state_; }
  int file() const noexcept { return file_; }
  // `reg`: 0 to 7.
  void write(std::uint16_t reg, std::uint8_t value) noexcept;
  std::uint8_t read(std::uint16_t reg) const noexcept;
  void note(const char* text) const noexcept;

 private:
  void put(std::uint8_t letter) noexcept;
  bool divisor_latch() const noexcept { return (state_.line_control & 0x80) != 0; }

  SerialState state_{};
  int file_;
};

}  // namespace kvm_guest
