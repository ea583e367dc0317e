// SPDX-License-Identifier: Apache-2.0
#include "ram/zero_page.hpp"

#include "ram/ram_map.hpp"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace migrationd::ram {
namespace {

std::uint64_t word_at(const std::byte* page, std::size_t offset) noexcept {
  std::uint64_t word;
  std::memcpy(&word, page + offset, sizeof word);
  return word;
}

// Where data shows most often: in the first cache line. The others are touched only if that one is zero, for each
// touched line is a miss in memory that nobody looked at for long.
bool looks_zero(const std::byte* page) noexcept {
  return (word_at(page, 0) | word_at(page, 8) | word_at(page, 24) | word_at(page, 56)) == 0 &&
         (word_at(page, 2048) | word_at(page, page_size - 8)) == 0;
}

// 128 bytes per step: the loop ends soon after the first byte that is not zero.
bool all_zero_baseline(const std::byte* page) noexcept {
  for (std::size_t at = 0; at < page_size; at += 128) {
    std::uint64_t any = 0;
    for (std::size_t word = 0; word < 128; word += 8) any |= word_at(page, at + word);
    if (any != 0) return false;
  }
  return true;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) bool all_zero_avx2(const std::byte* page) noexcept {
  const auto load = [page](std::size_t at) __attribute__((target("avx2"))) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(page + at)));
  };
  for (std::size_t at = 0; at < page_size; at += 256) {
    const __m256i a =
        _mm256_or_si256(_mm256_or_si256(load(at), load(at + 32)), _mm256_or_si256(load(at + 64), load(at + 96)));
    const __m256i b = _mm256_or_si256(_mm256_or_si256(load(at + 128), load(at + 160)),
                                      _mm256_or_si256(load(at + 192), load(at + 224)));
    const __m256i any = _mm256_or_si256(a, b);
    if (_mm256_testz_si256(any, any) == 0) return false;
  }
  return true;
}

__attribute__((target("avx512f"))) bool all_zero_avx512(const std::byte* page) noexcept {
  const auto load = [page](std::size_t at) __attribute__((target("avx512f"))) { return _mm512_loadu_si512(page + at); };
  for (std::size_t at = 0; at < page_size; at += 512) {
    const __m512i a =
        _mm512_or_si512(_mm512_or_si512(load(at), load(at + 64)), _mm512_or_si512(load(at + 128), load(at + 192)));
    const __m512i b = _mm512_or_si512(_mm512_or_si512(load(at + 256), load(at + 320)),
                                      _mm512_or_si512(load(at + 384), load(at + 448)));
    const __m512i any = _mm512_or_si512(a, b);
    if (_mm512_test_epi64_mask(any, any) != 0) return false;
  }
  return true;
}
#endif

struct Method {
  bool (*all_zero)(const std::byte*) noexcept;
  std::string_view name;
};

Method choose() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return {all_zero_avx512, "avx512"};
  if (__builtin_cpu_supports("avx2")) return {all_zero_avx2, "avx2"};
#endif
  return {all_zero_baseline, "baseline"};
}

const Method method = choose();

}  // namespace

bool is_zero_page(const std::byte* page) noexcept { return looks_zero(page) && method.all_zero(page); }

std::string_view zero_page_method() noexcept { return method.name; }

}  // namespace migrationd::ram
