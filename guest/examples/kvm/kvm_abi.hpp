// SPDX-License-Identifier: Apache-2.0
//
// KVM's requests whose structures end with an array of no length, as they are in C. The kernel's headers declare such
// an array behind an empty structure, which in C++ takes a byte: so sizes, and the request numbers made of them, are
// wrong there (Linux 6.1's headers; harmless where it was put right since).
#pragma once

#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <cstdint>

namespace kvm_guest {

// kvm_msrs with room for one.
struct OneMsr {
  std::uint32_t count = 1;
  std::uint32_t zero = 0;
  kvm_msr_entry entry{};
};

// kvm_cpuid2 with room for many.
struct CpuidList {
  std::uint32_t count = 256;
  std::uint32_t zero = 0;
  kvm_cpuid_entry2 entries[256]{};
};

struct ListHead {
  std::uint32_t count;
  std::uint32_t zero;
};
struct XsaveArea {
  std::uint8_t bytes[4096];
};

constexpr unsigned long get_supported_cpuid = _IOWR(KVMIO, 0x05, ListHead);
constexpr unsigned long set_cpuid = _IOW(KVMIO, 0x90, ListHead);
constexpr unsigned long get_msrs = _IOWR(KVMIO, 0x88, ListHead);
constexpr unsigned long set_msrs = _IOW(KVMIO, 0x89, ListHead);
constexpr unsigned long get_xsave = _IOR(KVMIO, 0xa4, XsaveArea);
constexpr unsigned long set_xsave = _IOW(KVMIO, 0xa5, XsaveArea);

}  // namespace kvm_guest
