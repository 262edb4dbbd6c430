package p11

// Generation of secret keys (sections 6.8, 6.10, 6.58 and 6.62). Sizes are in
// bits for generic keys and in bytes for the others, as the standard has it.
var secretMechanisms = []mechanism{
	{typ: CKM_GENERIC_SECRET_KEY_GEN, info: MechanismInfo{8, 8 * maxSecretKey, CKF_GENERATE}, keyType: CKK_GENERIC_SECRET},
	{typ: CKM_AES_KEY_GEN, info: MechanismInfo{16, 32, CKF_GENERATE}, keyType: CKK_AES},
	{typ: CKM_CHACHA20_KEY_GEN, info: MechanismInfo{32, 32, CKF_GENERATE}, keyType: CKK_CHACHA20},
	{typ: CKM_HKDF_KEY_GEN, info: MechanismInfo{1, maxSecretKey, CKF_GENERATE}, keyType: CKK_HKDF},
}
