// SPDX-License-Identifier: Apache-2.0
#include "guest/examples/kvm/serial.hpp"

#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>

namespace kvm_guest {
namespace {

const md_field serial_fields[] = {
    MD_U8(SerialState, scratch),
    MD_U8(SerialState, interrupt_enable),
    MD_U8(SerialState, line_control),
    MD_U8(SerialState, modem_control),
    MD_U16(SerialState, divisor),
    MD_U64(SerialState, lines),
    MD_U32(SerialState, length),
    MD_COUNTED(SerialState, line, MD_TYPE_U8, length, MD_TYPE_U32),
    MD_END,
};

// One call: lines of two monitors with one file do not mix.
void write_whole(int file, const char* text, std::size_t length) noexcept {
  if (::write(file, text, length) != static_cast<ssize_t>(length))
    std::fprintf(stderr, "kvm-guest: the serial output was cut: %s\n", std::strerror(errno));
}

timespec now() noexcept {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return time;
}

}  // namespace

const md_device serial_device = [] {
  md_device device{};
  device.name = "kvm-example-serial";
  device.version = device.minimum_version = 1;
  device.fields = serial_fields;
  device.state_size = sizeof(SerialState);
  return device;
}();

void Serial::write(std::uint16_t reg, std::uint8_t value) noexcept {
  switch (reg) {
    case 0:
      if (divisor_latch())
        state_.divisor = static_cast<std::uint16_t>((state_.divisor & 0xff00) | value);
      else
        put(value);
      break;
    case 1:
      if (divisor_latch())
        state_.divisor = static_cast<std::uint16_t>((state_.divisor & 0xff) | value << 8);
      else
        state_.interrupt_enable = value & 0xf;
      break;
    case 3:
      state_.line_control = value;
      break;
    case 4:
      state_.modem_control = value;
      break;
    case 7:
      state_.scratch = value;
      break;
    default:
      break;  // the FIFO's control, and what can only be read
  }
}

std::uint8_t Serial::read(std::uint16_t reg) const noexcept {
  constexpr std::uint8_t no_interrupt = 1;
  constexpr std::uint8_t transmitter_empty = 0x60;
  constexpr std::uint8_t somebody_listens = 0xb0;
  switch (reg) {
    case 0:
      return divisor_latch() ? state_.divisor & 0xff : 0;
    case 1:
      return divisor_latch() ? state_.divisor >> 8 : state_.interrupt_enable;
    case 2:
      return no_interrupt;
    case 3:
      return state_.line_control;
    case 4:
      return state_.modem_control;
    case 5:
      return transmitter_empty;
    case 6:
      return somebody_listens;
    default:
      return state_.scratch;
  }
}

void Serial::put(std::uint8_t letter) noexcept {
  if (letter != '\n') state_.line[state_.length++] = letter;
  if (letter != '\n' && state_.length < sizeof(state_.line)) return;
  const timespec time = now();
  char text[sizeof(state_.line) + 64];
  const int length = std::snprintf(text, sizeof(text), "%llu %lld.%09ld %.*s\n",
                                   static_cast<unsigned long long>(++state_.lines), static_cast<long long>(time.tv_sec),
                                   time.tv_nsec, static_cast<int>(state_.length), reinterpret_cast<char*>(state_.line));
  write_whole(file_, text, static_cast<std::size_t>(length));
  state_.length = 0;
}

void Serial::note(const char* text) const noexcept {
  const timespec time = now();
  char line[512];
  const int length =
      std::snprintf(line, sizeof(line), "# %lld.%09ld %s\n", static_cast<long long>(time.tv_sec), time.tv_nsec, text);
  write_whole(file_, line, std::min(static_cast<std::size_t>(length), sizeof(line) - 1));
}

}  // namespace kvm_guest
