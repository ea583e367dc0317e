// SPDX-License-Identifier: Apache-2.0
// Catch2 in the version the machine has: Debian 12 ships 2, Debian 13 ships 3.
#pragma once
#ifdef MIGRATIOND_CATCH2_V3
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif
